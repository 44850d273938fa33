"""A pass of torch.compile's CPU backend: sum over a row and update it in one loop, while the row is in the cache.

The backend fuses loops over the same rows (a sum; the update of the row from the sum; the rows' statistics, one value
each) into one loop only if all have the same steps. The loop over the statistics is vectorised over rows, so it has
others, and all three then run apart: a gradient is read from memory twice. This pass takes that last loop out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch._inductor.codegen.cpp import OuterLoopFusedSchedulerNode
from torch._inductor.custom_graph_pass import CustomSchedulerPass


class KeepRowLoops(CustomSchedulerPass):
    """Runs after fusion."""

    def __call__(self, nodes: Sequence[Any]) -> list[Any]:
        """The nodes in order, fused loops over rows without the statistics' own loop at their end."""
        return [part for node in nodes for part in _parts(node)]

    def uuid(self) -> str:
        """Names the pass in the compiler's cache."""
        return "optimizers.engine.row_loops 1"


def _parts(node: Any) -> list[Any]:
    if type(node) is not OuterLoopFusedSchedulerNode:
        return [node]
    loops, depth = list(node.get_outer_nodes()), node.outer_loop_fusion_depth
    apart: list[Any] = []
    while loops and _has_only_outer_loops(loops[-1], depth):
        apart.insert(0, loops.pop())
    if len(loops) < 2 or not apart:
        return [node]
    fused = OuterLoopFusedSchedulerNode(node.scheduler, loops, depth)
    for part in (fused, *apart):
        node.scheduler.name_to_fused_node.update({inner.get_name(): part for inner in part.get_nodes()})
    return [fused, *apart]


def _has_only_outer_loops(node: Any, depth: int) -> bool:
    _, (loops, reduced) = node.group
    return len(loops) == depth and not reduced
