"""Real problems: which method, on molecules, two equations and genes?"""
