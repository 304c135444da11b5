"""Multi-task optimization in JAX: every method is an Optax transform."""
from mtlopt.labels import label_params
from mtlopt.heads import stacked
from mtlopt.oracle import task_grad, Oracle
from mtlopt.task_grads import TaskGrads
from mtlopt.aggregators.sums import sum_tasks, mean_tasks
