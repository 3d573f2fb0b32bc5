"""Whether a GPU has room for more."""

from __future__ import annotations

from tests.fakes.fake_cuda.books import Books
from tests.fakes.fake_cuda.description import NodeDescription
from tests.fakes.fake_cuda.results import CUresult, Failed


def free_bytes(books: Books, node: NodeDescription, uuid: str) -> int:
    total = node.gpus[node.index_of(uuid)].memory_bytes
    return max(0, total - node.system_bytes - books.used_bytes(uuid))


def require_room(books: Books, node: NodeDescription, uuid: str, nbytes: int) -> None:
    if nbytes > free_bytes(books, node, uuid):
        raise Failed(CUresult.CUDA_ERROR_OUT_OF_MEMORY)
