"""The training engine: recipes, the loop, its state; what is trained is a `vmamba.tasks.protocol.Task`."""
