"""The compiled kernels (csrc/module.cpp). Addresses are those of contiguous CPU memory."""

def instruction_sets() -> list[str]: ...
def adopt_openmp(library: str) -> bool: ...
def poison_memory(on: bool) -> None: ...
def ss2d_scan(
    isa: str, storage: int, threads: int, routes: list[int], sizes: list[int], inputs: list[int], y: int
) -> None: ...
def ss2d_scan_backward(
    isa: str,
    storage: int,
    threads: int,
    routes: list[int],
    sizes: list[int],
    inputs: list[int],
    dy: int,
    gradients: list[int],
) -> None: ...
def scan_routes(isa: str, storage: int, threads: int, sizes: list[int], inputs: list[int], y: int) -> None: ...
def scan_routes_backward(
    isa: str, storage: int, threads: int, sizes: list[int], inputs: list[int], dy: int, gradients: list[int]
) -> None: ...
def selective_scan(
    isa: str, storage: int, threads: int, softplus: bool, sizes: list[int], inputs: list[int], y: int, last: int
) -> None: ...
def selective_scan_backward(
    isa: str,
    storage: int,
    threads: int,
    softplus: bool,
    sizes: list[int],
    inputs: list[int],
    dy: int,
    dlast: int,
    gradients: list[int],
) -> None: ...
