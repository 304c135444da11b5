"""Real problems: which method for molecules, equations and genes?"""
