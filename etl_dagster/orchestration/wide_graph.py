"""A graph of ops with an output for each of many tables, and the assets that stand for these outputs."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import dagster as dg


class WideGraph(dg.GraphDefinition):
    """A chain of ops whose last one has all outputs; it knows them by name.

    Dagster looks through all outputs for each of them, several times: with 10,000 that is most of validating them.
    """

    @cached_property
    def _by_output(self) -> Mapping[str, dg.OutputMapping]:
        return {mapping.graph_output_name: mapping for mapping in self.output_mappings}

    def get_output_mapping(self, output_name: str) -> dg.OutputMapping:
        return self._by_output[output_name]

    def resolve_output_to_destinations(self, output_name: str, handle: object) -> Sequence[Any]:
        return []  # no op comes after the last one


def chain(name: str, description: str, steps: Mapping[str, dg.OpDefinition], outputs: Iterable[str]) -> WideGraph:
    """The ops one after the other, each under its step's name; the last one has the outputs."""
    names = list(steps)
    nodes = {step: dg.NodeInvocation(op.name, alias=step) for step, op in steps.items()}
    before: list[Mapping[str, dg.DependencyDefinition]] = [{}]
    before += [{"start": dg.DependencyDefinition(step)} for step in names[:-1]]
    return WideGraph(
        name=name,
        description=description,
        node_defs=list(steps.values()),
        dependencies={nodes[step]: inputs for step, inputs in zip(names, before, strict=True)},
        output_mappings=[dg.OutputMapping(output, names[-1], output) for output in outputs],
    )


def assets_of(
    graph: dg.GraphDefinition,
    specs: Mapping[str, dg.AssetSpec],
    backfill_policy: dg.BackfillPolicy | None = None,
) -> dg.AssetsDefinition:
    """The assets by the output that stands for each; what they depend on is said by their specs alone.

    As inputs of the graph, dependencies would make each run of a thousand tables four seconds longer.
    """
    listed: Sequence[dg.AssetSpec] = list(specs.values())
    return dg.AssetsDefinition(
        node_def=graph,
        keys_by_output_name={output: spec.key for output, spec in specs.items()},
        specs=listed,
        can_subset=True,
        backfill_policy=backfill_policy,
    )
