"""Fast line search: Filatov and Merkulov, 2021."""
