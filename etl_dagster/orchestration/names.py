"""Names by which Dagster knows a pipeline: jobs, resources, tags."""

import re
from dataclasses import dataclass

# Run tags. Every run that holds the pipeline carries the first: at most one of them is active at a time.
PIPELINE_TAG = "etl/pipeline"
UNTIL_TAG = "etl/until"
# On a run that found the pipeline in the hands of another process, and so had nothing to do. The value of this tag and
# of the next is the run's id: a re-execution gets all tags of the run before it.
HELD_TAG = "etl/held_elsewhere"
# On a run that is about to end and still works until its successor is there.
ENDING_TAG = "etl/ending"
# Dagster ends a run that takes longer: also one whose machine is gone, which would count as active for ever.
MAX_RUNTIME_TAG = "dagster/max_runtime"
# On live tables: how their changes land.
LANDING_TAG = "etl/landing"
# Likewise, as metadata: where the destination shows the table.
CONSOLE = "etl/console"
# Runs beside the pipeline: checks, retention.
HOUSEKEEPING_TAG = "etl/housekeeping"

_UNSAFE = re.compile(r"[^A-Za-z0-9_]")


def safe_name(text: str) -> str:
    """The text with every character that Dagster refuses in a name replaced by an underscore."""
    return _UNSAFE.sub("_", text)


@dataclass(frozen=True)
class PipelineNames:
    """What the objects of one pipeline are called, so that several pipelines fit into one code location."""

    pipeline: str

    @property
    def group(self) -> str:
        """Asset group."""
        return safe_name(self.pipeline)

    @property
    def live(self) -> str:
        """The graph behind the live tables."""
        return f"{self.group}__live"

    @property
    def sync(self) -> str:
        """The graph behind the table syncs."""
        return f"{self.group}__sync"

    @property
    def sync_job(self) -> str:
        """Job that copies all tables afresh."""
        return f"{self.group}__resync_all"

    @property
    def resume(self) -> str:
        """Job that has quarantined tables go on."""
        return f"{self.group}__resume"

    @property
    def micro_batch(self) -> str:
        """Job that the sensor requests."""
        return f"{self.group}__micro_batch"

    @property
    def sensor(self) -> str:
        """Sensor that watches the source."""
        return f"{self.group}__changes"

    @property
    def retention(self) -> str:
        """Job that deletes old runs."""
        return f"{self.group}__retention"

    @property
    def health(self) -> str:
        """Job that runs the asset checks."""
        return f"{self.group}__health"

    @property
    def source(self) -> str:
        """Resource key of the source."""
        return f"{self.group}__source"

    @property
    def destination(self) -> str:
        """Resource key of the destination."""
        return f"{self.group}__destination"

    @property
    def store(self) -> str:
        """Resource key of the store."""
        return f"{self.group}__store"

    @property
    def session(self) -> str:
        """Resource key of the run's open pipeline."""
        return f"{self.group}__session"
