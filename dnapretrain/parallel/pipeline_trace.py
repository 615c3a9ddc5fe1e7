"""What the ranks of one pipeline do in a step, and the proof that it ends: pure bookkeeping, no torch.

A trace is the list of events of one rank in the order its schedule makes them. `check_pipeline` runs the traces of all ranks against
each other under NCCL's rules, the strictest that there are: what one rank starts on one channel is done in that order, an operation
moves only when its peer has come to the other end of it, and a batch ends when all of it has moved.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["forward", "backward"]


@dataclass(frozen=True)
class Pass:
    """A forward or backward pass of one micro-batch through one model chunk of a pipeline rank."""

    kind: Kind
    chunk: int
    micro_batch: int


@dataclass(frozen=True)
class Transfer:
    """One end of a message between pipeline ranks."""

    number: int
    """Of this rank's transfers, from 0."""
    is_send: bool
    peer: int
    """Pipeline rank at the other end."""
    channel: tuple[object, ...]
    """What orders it: transfers of one rank on one channel are done one after the other. Both ends name it alike."""
    payload: Pass | None = None
    """Of a send: the pass that made what is sent."""


@dataclass(frozen=True)
class Run:
    """An event: a pass is run on what transfer `source` has brought; None where it needs nothing from another rank."""

    what: Pass
    source: int | None


@dataclass(frozen=True)
class Start:
    """An event: transfers of one channel are begun together."""

    transfers: tuple[Transfer, ...]


@dataclass(frozen=True)
class Wait:
    """An event: nothing more happens on this rank before transfer `number` is done."""

    number: int


Event = Run | Start | Wait


@dataclass(frozen=True)
class Phases:
    """The passes of one rank, counted."""

    warm_up: int
    """Forward passes before the one that the first backward pass follows."""
    steady: int
    """Pairs of one forward and one backward pass."""
    cool_down: int
    """Backward passes after the one that follows the last forward pass."""
    in_flight: int
    """Forward passes whose backward pass is to come, at most."""
    sends: int


def phases(trace: Sequence[Event]) -> Phases:
    """Warm-up, steady state and cool-down of one rank's trace."""
    kinds = [event.what.kind for event in trace if isinstance(event, Run)]
    sends = [transfer for event in trace if isinstance(event, Start) for transfer in event.transfers if transfer.is_send]
    forwards = kinds.count("forward")
    warm_up = kinds.index("backward") if "backward" in kinds else forwards
    # The forward pass right before the first backward pass is the first of the steady state.
    warm_up = max(0, warm_up - 1) if "backward" in kinds else warm_up
    cool_down = len(kinds) - 1 - max((place for place, kind in enumerate(kinds) if kind == "forward"), default=-1)
    cool_down = max(0, cool_down - 1) if forwards else cool_down
    depth = most = 0
    for kind in kinds:
        depth += 1 if kind == "forward" else -1
        most = max(most, depth)
    return Phases(warm_up, forwards - warm_up, cool_down, most, len(sends))


def check_pipeline(traces: Sequence[Sequence[Event]], num_microbatches: int, num_chunks: int) -> list[str]:
    """What is wrong with the traces of all pipeline ranks, in words; an empty list is the proof.

    Every micro-batch goes forward and back once through every chunk of every rank, no rank waits for ever, every message is
    received, and each pass runs on what the pass before it has made.
    """
    problems = [text for rank, trace in enumerate(traces) for text in _check_passes(rank, trace, num_microbatches, num_chunks)]
    return problems + _Pipeline(traces, num_chunks).run()


def _check_passes(rank: int, trace: Sequence[Event], num_microbatches: int, num_chunks: int) -> list[str]:
    passes = [event.what for event in trace if isinstance(event, Run)]
    counts = Counter(passes)
    wanted = {Pass(kind, chunk, number) for kind in _KINDS for chunk in range(num_chunks) for number in range(num_microbatches)}
    problems = [
        f"pipeline rank {rank}: {_named(what)} is run {counts[what]} times"
        for what in sorted(wanted | set(counts), key=_order)
        if counts[what] != (what in wanted)
    ]
    place = {what: number for number, what in enumerate(passes)}
    for what in passes:
        forward = Pass("forward", what.chunk, what.micro_batch)
        if what.kind == "backward" and place.get(forward, len(passes)) > place[what]:
            problems.append(f"pipeline rank {rank}: {_named(what)} comes before its forward pass")
    return problems


_KINDS: tuple[Kind, Kind] = ("forward", "backward")


def _order(what: Pass) -> tuple[str, int, int]:
    return what.kind, what.chunk, what.micro_batch


def _named(what: Pass | None) -> str:
    return "nothing" if what is None else f"the {what.kind} pass of micro-batch {what.micro_batch} through chunk {what.chunk}"


@dataclass
class _Batch:
    """Transfers begun together that have not all moved."""

    left: list[Transfer]


@dataclass
class _Pipeline:
    """All ranks, played against each other until none can go on."""

    traces: Sequence[Sequence[Event]]
    num_chunks: int
    at: list[int] = field(default_factory=list)
    """Place of each rank in its trace."""
    queues: dict[tuple[int, tuple[object, ...]], deque[_Batch]] = field(default_factory=dict)
    done: list[set[int]] = field(default_factory=list)
    """Of each rank, the numbers of its transfers that are done."""
    brought: list[dict[int, Pass | None]] = field(default_factory=list)
    """Of each rank, what its receives have brought."""
    problems: list[str] = field(default_factory=list)

    def run(self) -> list[str]:
        """Go as far as it goes; what is wrong."""
        ranks = range(len(self.traces))
        self.at, self.done, self.brought = [0 for _ in ranks], [set() for _ in ranks], [{} for _ in ranks]
        while any([self._advance(rank) for rank in ranks]) or any([self._move(*key) for key in list(self.queues)]):
            pass
        for rank in ranks:
            if self.at[rank] < len(self.traces[rank]):
                event = self.traces[rank][self.at[rank]]
                assert isinstance(event, Wait)
                self.problems.append(f"deadlock: pipeline rank {rank} waits for {self._described(rank, event.number)}")
        stuck = {rank for rank in ranks if self.at[rank] < len(self.traces[rank])}
        for (rank, _), queue in self.queues.items():
            left = [transfer for batch in queue for transfer in batch.left]
            if left and not stuck:
                self.problems.append(f"pipeline rank {rank} has begun {self._described(rank, left[0].number)}, which never ends")
        return self.problems

    def _advance(self, rank: int) -> bool:
        """Let one rank do all that it can; whether it did anything."""
        began = self.at[rank]
        trace = self.traces[rank]
        while self.at[rank] < len(trace):
            event = trace[self.at[rank]]
            if isinstance(event, Wait) and event.number not in self.done[rank]:
                break
            if isinstance(event, Start):
                for channel in dict.fromkeys(transfer.channel for transfer in event.transfers):
                    batch = _Batch([transfer for transfer in event.transfers if transfer.channel == channel])
                    self.queues.setdefault((rank, channel), deque()).append(batch)
            if isinstance(event, Run):
                self._check_source(rank, event)
            self.at[rank] += 1
        return self.at[rank] > began

    def _move(self, rank: int, channel: tuple[object, ...]) -> bool:
        """Move what the first batch of a rank's channel shares with the first batches of its peers; whether anything moved."""
        queue = self.queues[rank, channel]
        moved = False
        while queue:
            batch = queue[0]
            for ours in list(batch.left):
                peers = self.queues.get((ours.peer, channel))
                theirs = next((end for end in (peers[0].left if peers else ()) if end.peer == rank and end.is_send != ours.is_send), None)
                if peers is None or theirs is None:
                    continue
                moved = True
                batch.left.remove(ours)
                peers[0].left.remove(theirs)
                self._arrive(rank, ours, ours.peer, theirs)
                if not peers[0].left:
                    peers.popleft()
            if batch.left:
                return moved
            if queue and queue[0] is batch:
                queue.popleft()
        return moved

    def _arrive(self, rank: int, ours: Transfer, peer: int, theirs: Transfer) -> None:
        for here, end, other in ((rank, ours, theirs), (peer, theirs, ours)):
            self.done[here].add(end.number)
            if not end.is_send:
                self.brought[here][end.number] = other.payload

    def _check_source(self, rank: int, event: Run) -> None:
        """What a pass runs on must be there, and be what the pass before it in the model made."""
        wanted = self._pass_before(rank, event.what)
        if event.source is None:
            if wanted is not None:
                self.problems.append(f"pipeline rank {rank}: {_named(event.what)} is run on nothing received")
        elif event.source not in self.done[rank]:
            self.problems.append(f"pipeline rank {rank}: {_named(event.what)} is run before its input has come")
        elif (got := self.brought[rank].get(event.source)) != wanted:
            self.problems.append(f"pipeline rank {rank}: {_named(event.what)} is run on what {_named(got)} made, not {_named(wanted)}")

    def _pass_before(self, rank: int, what: Pass) -> Pass | None:
        """The pass on a neighbour whose result `what` needs; None at the ends of the model."""
        step = 1 if what.kind == "forward" else -1
        first = 0 if step == 1 else len(self.traces) - 1
        if rank != first:
            return what
        chunk = what.chunk - step
        return Pass(what.kind, chunk, what.micro_batch) if 0 <= chunk < self.num_chunks else None

    def _described(self, rank: int, number: int) -> str:
        transfers = (transfer for event in self.traces[rank] if isinstance(event, Start) for transfer in event.transfers)
        transfer = next((transfer for transfer in transfers if transfer.number == number), None)
        if transfer is None:
            return f"transfer {number}, which it has not begun"
        return f"its send to {transfer.peer} of {_named(transfer.payload)}" if transfer.is_send else f"its receive from {transfer.peer}"
