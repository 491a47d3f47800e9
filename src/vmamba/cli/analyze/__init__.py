"""``vmamba analyze``: one module per analysis, imported when it is used; `vmamba.analysis` has what they compute."""

DESCRIPTION = "Look inside models, and compare them. Every analysis writes tables and pictures."

COMMANDS = {
    "attention": "which tokens the output of a token is made of, per route",
    "activation": "what a layer computes for a position, and where a class is seen",
    "erf": "which pixels the centre of the last feature map depends on",
    "cost": "parameters, multiply-adds, activations, per layer and in all",
    "throughput": "images per second and peak memory, models taking turns",
    "precision": "the error and the time of a model frozen in each precision, on a CPU",
    "scaling": "the same against resolution",
    "scans": "train the scan patterns alike on built-in tasks and compare them",
    "steps": "from the vanilla block to the fast one, step by step",
}
