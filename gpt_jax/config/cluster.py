"""How the processes of one run meet, as given on their command lines. Standard library only."""

import dataclasses

from gpt_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The place of this process among the processes of one run.

    Attributes:
      coordinator: "HOST:PORT" where process 0 listens. Empty: JAX detects it, num_processes and
        process_id (under Slurm, Open MPI, Kubernetes and on Cloud TPU).
      num_processes: how many processes there are.
      process_id: the number of this process, from 0.
      bind: the address at which process 0 listens, without the port; empty = HOST.
      timeout_s: how long to wait for the other processes, in seconds.

    Raises:
      UserError: for a value that is impossible, or if some of the first three are missing.
    """

    coordinator: str = ""
    num_processes: int | None = None
    process_id: int | None = None
    bind: str = ""
    timeout_s: int = 300

    def __post_init__(self) -> None:
        if self.timeout_s <= 0:
            raise UserError(f"--join_timeout={self.timeout_s} is too short: give seconds above 0")
        values = (self.coordinator or None, self.num_processes, self.process_id)
        given = [value is not None for value in values]
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
                f"--coordinator={self.coordinator} is not HOST:PORT: give the host of process 0 "
                "and one of its free ports, such as localhost:8476"
            )
        count, number = self.num_processes or 0, self.process_id or 0
        if count < 1:
            raise UserError(f"--num_processes={count} is too few: give 1 or more")
        if not 0 <= number < count:
            raise UserError(
                f"--process_id={number} is out of range: {count} processes are numbered from 0 to "
                f"{count - 1}"
            )

    @property
    def bind_address(self) -> str:
        """Where process 0 listens: only where asked, because anyone who reaches it can join."""
        host, _, port = self.coordinator.rpartition(":")
        return f"{self.bind or host}:{port}"
