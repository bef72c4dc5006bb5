"""Where the processes of one run meet, as their command lines say it. Standard library only."""

import dataclasses

from gpt_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Cluster:
    """One of several processes, and the others.

    Attributes:
      coordinator: "HOST:PORT" where process 0 listens; empty = all three are what JAX detects
        (Slurm, Open MPI, Kubernetes, Cloud TPU).
      num_processes, process_id: how many there are, and which one this is, from 0.
      bind: the address at which process 0 listens, without the port; empty = HOST.
      timeout_s: how long to wait for the others.

    Raises:
      UserError: for what cannot be, or only half of it.
    """

    coordinator: str = ""
    num_processes: int | None = None
    process_id: int | None = None
    bind: str = ""
    timeout_s: int = 300

    def __post_init__(self) -> None:
        if self.timeout_s <= 0:
            raise UserError(f"--join_timeout={self.timeout_s} is no time: give seconds above 0")
        given = (
            bool(self.coordinator),
            self.num_processes is not None,
            self.process_id is not None,
        )
        if any(given) and not all(given):
            raise UserError(
                "--coordinator, --num_processes and --process_id belong together: give all three, "
                "or none where Slurm, Open MPI, Kubernetes or a Cloud TPU starts the processes"
            )
        if all(given):
            self._check()
        elif self.bind:
            raise UserError(
                f"--coordinator_bind={self.bind} needs --coordinator: without it JAX chooses both"
            )

    def _check(self) -> None:
        host, _, port = self.coordinator.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
            raise UserError(
                f"--coordinator={self.coordinator} is no HOST:PORT: name the host of process 0 and "
                "a free port of it, such as localhost:8476"
            )
        count, number = self.num_processes or 0, self.process_id or 0
        if count < 1:
            raise UserError(f"--num_processes={count} is no number of processes: give 1 or more")
        if not 0 <= number < count:
            raise UserError(
                f"--process_id={number} is none of {count} processes: they are numbered from 0 to "
                f"{count - 1}"
            )

    @property
    def bind_address(self) -> str:
        """Where process 0 listens: anyone who reaches it can join, so never more than was asked."""
        host, _, port = self.coordinator.rpartition(":")
        return f"{self.bind or host}:{port}"
