"""Where a session is in its life: one state on each side, and the table of its legal moves.

The rules, the same for both sides:

HELLO     Nobody has proved anything. The caller says which replica it means, and which secret it
          holds; the replica answers with a challenge, which is its own proof.
PROOF     The replica has proved itself, the caller has not. Each side enters this state when it has
          done its part: the replica when it challenges, the caller when it answers.
OPEN      Both have proved themselves. Only here is a request made, or taken.
DRAINING  The replica takes no more requests. Those that it has read go on as in OPEN: replies,
          items, credit and cancels. There is no way back to OPEN.
CLOSED    Refused, broken by the peer, or ended by the owner. It is final: nothing is queued any
          more and nothing received; what was queued before, a refusal for example, still leaves.

A handshake may fail, and an owner may close, at any time: every state leads to CLOSED. DRAINING
comes only after OPEN: a replica that is told to drain during the handshake remembers that in its
handshake, welcomes the caller, and drains in the same message.

`SessionLife.move` is the only place that assigns the state. A machine looks at the state first and
works afterwards, so a call that comes in the wrong state leaves nothing half done.
"""

from __future__ import annotations

import enum

from serve_grpc.states import IllegalMoveError, Moves, check_move, log_move

__all__ = ["SESSION_MOVES", "SessionLife", "SessionState"]


class SessionState(enum.Enum):
    """Where a session is in its life, seen from either side."""

    HELLO = "hello"
    PROOF = "proof"
    OPEN = "open"
    DRAINING = "draining"
    CLOSED = "closed"


SESSION_MOVES: Moves[SessionState] = {
    SessionState.HELLO: frozenset({SessionState.PROOF, SessionState.CLOSED}),
    SessionState.PROOF: frozenset({SessionState.OPEN, SessionState.CLOSED}),
    SessionState.OPEN: frozenset({SessionState.DRAINING, SessionState.CLOSED}),
    SessionState.DRAINING: frozenset({SessionState.CLOSED}),
    SessionState.CLOSED: frozenset(),
}


class SessionLife:
    """The state of one side of a session, for the machine of that side to inherit.

    Args:
        side: "caller" or "replica", for the log.
        replica_id: Unique id of the replica that the session is with.
        epoch: The replica's number for the session; 0 while the caller does not know it yet.

    Attributes:
        state: To be read by anybody, changed by nobody: `move` does that.
        epoch: As the argument. With the replica's id it names the session, on both sides alike.
    """

    def __init__(self, side: str, replica_id: str, epoch: int) -> None:
        self._side = side
        self._replica_id = replica_id
        # A plain attribute: it is read for each request, where a property would cost a call.
        self.state = SessionState.HELLO
        self.epoch = epoch

    @property
    def name(self) -> str:
        """The replica's id and the session's number there: the same on both sides."""
        return f"{self._replica_id}/{self.epoch}"

    def move(self, after: SessionState, why: str = "") -> None:
        """Go to another state, for the machine itself.

        Args:
            after: The next state; staying is no move and is not logged.
            why: What led to it, for the log.

        Raises:
            IllegalMoveError: The table does not have this move. Only in tests: in production the
                move is logged, and made unless the session is closed.
        """
        before = self.state
        check_move(SESSION_MOVES, self, before, after)
        # In production an illegal move was only logged. One out of CLOSED is not made even then:
        # the calls have been given back, and would end a second time.
        if before is after or before is SessionState.CLOSED:
            return
        self.state = after
        log_move(f"{self._side}'s session {self.name}", before, after, why)

    def illegal(self, what: str) -> IllegalMoveError:
        """The error for a call that the state does not allow, to be raised before any work.

        Args:
            what: Was asked for: "a request".
        """
        return IllegalMoveError(f"{what} in state {self.state.name} of {self!r}")
