"""Line search: step sizes that lower every task's loss."""
