"""The ranks beside a session, and what they do: hold the transformer and answer its calls."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NoReturn

from cogedit.config import Settings
from cogedit.errors import DeviceMemoryError, UsageError
from cogedit.models.cost import LatentShape, Work
from cogedit.types import LoraFile, WindowPlan

if TYPE_CHECKING:
    from cogedit.models.ranks import Ranks
    from cogedit.stages.session import Session


@dataclass(frozen=True)
class Pass:
    """What a session needs the transformer for."""

    work: Work
    shape: LatentShape
    settings: Settings
    windows: WindowPlan | None
    loras: Sequence[LoraFile]


class Helpers:
    """The other ranks of a session, which are started when the transformer is first needed.

    Attributes:
        ranks: They and this process, inside of `beside`; None where it computes alone.
    """

    def __init__(self) -> None:
        self.ranks: Ranks | None = None
        self._started: Ranks | None = None

    @contextmanager
    def beside(self, work: Pass) -> Iterator[None]:
        """Have the other ranks, as many as the settings say, take part in a pass."""
        ranks = self._of(work.settings.transformer.gpus)
        if ranks is None:
            yield
            return
        with ranks.calling():
            ranks.tell(work)
        self.ranks = ranks
        try:
            yield
        finally:
            self.ranks = None
            if not ranks.is_lost:
                with ranks.calling():
                    ranks.tell(None)

    def close(self) -> None:
        """Let those end that were started here."""
        if self._started is not None:
            self._started.close()
        self._started = None

    def _of(self, count: int) -> Ranks | None:
        """Return so many ranks; None for one."""
        if count == 1:
            return None
        if self._started is not None and (self._started.is_lost or self._started.size != count):
            self.close()
        from cogedit.models.ranks import Ranks, is_launched

        if is_launched():
            return _launched(count)
        if self._started is None:
            self._started = Ranks.start(count)
        return self._started


def _launched(count: int) -> Ranks:
    """Return the ranks of torchrun."""
    from cogedit.models.ranks import Ranks

    ranks = Ranks.launched()
    if ranks.is_lost:
        raise DeviceMemoryError(
            "the other processes that torchrun started have ended", hint="run the command again"
        )
    if ranks.size != count:
        raise UsageError(
            f"--gpus is {count}, and torchrun started {ranks.size} processes",
            hint="leave --gpus out",
        )
    return ranks


def release() -> None:
    """Let the other processes of torchrun end, at the end of rank 0, whatever it did."""
    from cogedit.models.ranks import Ranks

    Ranks.launched().close()


def follow() -> NoReturn:
    """Run as one of the others until rank 0 lets it end, or ends itself.

    Silent: an error of its own is raised by rank 0. A request to stop is for that one, too, which
    ends after its step.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    warnings.simplefilter("ignore")
    from cogedit.models.ranks import RankLost, Ranks
    from cogedit.stages.session import Session

    ranks = Ranks.follow()
    try:
        with Session() as session:
            while (work := ranks.hear()[0]) is not None:
                assert isinstance(work, Pass)
                _take_part(ranks, work, session)
    except RankLost:
        pass  # whoever failed has said why
    except BaseException as error:  # noqa: BLE001  (rank 0 raises it)
        ranks.fail(error)
    # Not through Python's own end: the thread that watches the store would abort it, with a line
    # on the user's terminal.
    os._exit(0)


def _take_part(ranks: Ranks, work: Pass, session: Session) -> None:
    """Answer the calls of a pass."""
    from cogedit.models.device import memory_guard, resolve_device
    from cogedit.models.forward import run_rows
    from cogedit.models.row_model import RowModel
    from cogedit.models.sharing import SharedCall, answer_call
    from cogedit.stages.run import Run

    settings = work.settings
    if resolve_device(settings.device).type == "cuda":
        import torch

        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
        settings = replace(settings, device=device)
    alone = replace(settings, transformer=replace(settings.transformer, gpus=1))
    with (
        memory_guard("computing with others"),
        session.transformer(
            work.work, work.shape, alone, windows=work.windows, loras=work.loras, run=Run()
        ) as transformer,
        run_rows(transformer, settings.transformer),
    ):
        model = RowModel(transformer)
        while True:
            message, tensors = ranks.hear(model.device)
            if not isinstance(message, SharedCall):
                return
            answer_call(ranks, model, message, tensors)
