------------------------- MODULE GlobalTransaction -------------------------
(***************************************************************************
The protocol of a global transaction: callers, resources and the coordinator
with its replicated store. README.md beside this file says which action is
which function of the code, and what the model leaves out.

Messages are facts that stay in the network for ever: whoever may receive one
may receive it late, again, or never. A crash is a step of its own. Clocks
appear nowhere: "past the deadline" may be true at any moment.

Every resource has one row. A local transaction of PostgreSQL is atomic and
isolated by its row lock; that is assumed, not modelled.
***************************************************************************)
EXTENDS Integers, Sequences, FiniteSets, TLC

CONSTANTS
    t1, t2, t3,     \* transactions
    a, b, c,        \* resources
    Plan,           \* transaction -> the resources that it calls, one after the other
    PlainWrites,    \* how many plain writers come to each row
    StoreFaults,    \* how many restarts and failovers of the coordinator's store happen
    EarlyPurge,     \* whether tombstones and undone branches may vanish while calls are still on their way
    Mutant          \* "none", or what is built wrong (see Mutants)

Mutants == {
    "no lock check", "plain writers unguarded", "plain writers unguarded and undo blind",
    "lock let go before the decision", "undecided holder is taken over",
    "resource aborts on its own", "resource follows a wish", "repeated call taken twice", "call forgotten too soon",
    "no fence and no settle loop", "nobody presumes abort", "commit answered before durable",
    "rollback answered before durable", "no barrier", "presumed abort without recording", "late commit overrules",
    "commit with a call unanswered", "no answer taken for a rollback"}

ASSUME Mutant \in Mutants \union {"none"}

Is(mutant) == Mutant = mutant
FollowedOnce == Is("no fence and no settle loop")

Xids == DOMAIN Plan
ResourcesOf(t) == {Plan[t][i] : i \in DOMAIN Plan[t]}
Resources == UNION {ResourcesOf(t) : t \in Xids}
Call(t, r) == CHOOSE i \in DOMAIN Plan[t] : Plan[t][i] = r

\* Decisions; U is undecided, and "no value" where something may be missing.
U == "undecided"
C == "committed"
R == "rolled back"

PLAIN == "plain"
NONE == <<>>

VARIABLES
    \* The caller of each transaction.
    pc,       \* "working", "deciding" (asked for the decision), "told C", "told R", "gone" (crashed or gave up)
    heard,    \* how many of its calls were answered; the next one is on its way
    wish,     \* the decision that it asked for, U when none: a message
    \* The resources.
    branch,   \* [t][r]: "none", "open", "forgotten", "undone", "tombstone", "quarantined"
    before,   \* [t][r]: the undo record and global lock: the before image, NONE when there is none
    row,      \* [r]: who wrote it and how often, in whatever order
    running,  \* [r]: the transaction whose phase one runs in the row now, U when none. Lost in a crash
    plain,    \* [r]: how many plain writes were acknowledged
    \* Messages.
    replied,  \* [t]: how many calls have sent an answer
    said,     \* [t]: the decisions that the coordinator has ever told anybody
    followed, \* [t]: resources that will not look at the transaction again (only without a settle loop)
    \* The coordinator's store.
    disk,     \* [t]: the decision in the primary's log
    shown,    \* [t]: the decision that a reader of the primary sees
    safe,     \* [t]: the decision that the standby has too
    gate,     \* whether the coordinator's connection has passed its barrier
    faults

callers == <<pc, heard, wish>>
resources == <<branch, before, row, running, plain, followed>>
store == <<disk, shown, safe, gate, faults>>
vars == <<callers, resources, store, replied, said>>

Written(image, who) == [image EXCEPT ![who] = @ + 1]
Untouched == [w \in Xids \union {PLAIN} |-> 0]

Init ==
    /\ pc = [t \in Xids |-> "working"]
    /\ heard = [t \in Xids |-> 0]
    /\ wish = [t \in Xids |-> U]
    /\ branch = [t \in Xids |-> [r \in Resources |-> "none"]]
    /\ before = [t \in Xids |-> [r \in Resources |-> NONE]]
    /\ row = [r \in Resources |-> Untouched]
    /\ running = [r \in Resources |-> U]
    /\ plain = [r \in Resources |-> 0]
    /\ replied = [t \in Xids |-> 0]
    /\ said = [t \in Xids |-> {}]
    /\ followed = [t \in Xids |-> {}]
    /\ disk = [t \in Xids |-> U]
    /\ shown = [t \in Xids |-> U]
    /\ safe = [t \in Xids |-> U]
    /\ gate = TRUE
    /\ faults = 0

-----------------------------------------------------------------------------
\* The caller (TM).

HearReply(t) ==
    /\ pc[t] = "working" /\ replied[t] > heard[t]
    /\ heard' = [heard EXCEPT ![t] = @ + 1]
    /\ UNCHANGED <<pc, wish, resources, store, replied, said>>

AskCommit(t) ==
    /\ pc[t] = "working"
    /\ heard[t] + (IF Is("commit with a call unanswered") THEN 1 ELSE 0) >= Len(Plan[t])
    /\ pc' = [pc EXCEPT ![t] = "deciding"] /\ wish' = [wish EXCEPT ![t] = C]
    /\ UNCHANGED <<heard, resources, store, replied, said>>

\* Its work failed, a call ended without an answer, or the time is up: it can only roll back.
AskRollback(t) ==
    /\ pc[t] = "working"
    /\ pc' = [pc EXCEPT ![t] = "deciding"] /\ wish' = [wish EXCEPT ![t] = R]
    /\ UNCHANGED <<heard, resources, store, replied, said>>

HearOutcome(t) ==
    /\ pc[t] = "deciding"
    /\ \/ C \in said[t] /\ pc' = [pc EXCEPT ![t] = "told C"]
       \/ R \in said[t] /\ pc' = [pc EXCEPT ![t] = "told R"]
       \/ Is("no answer taken for a rollback") /\ pc' = [pc EXCEPT ![t] = "told R"]
    /\ UNCHANGED <<heard, wish, resources, store, replied, said>>

\* It crashes, or ends not knowing the outcome. What it has sent is still on its way.
CallerCrash(t) ==
    /\ pc[t] \in {"working", "deciding"}
    /\ pc' = [pc EXCEPT ![t] = "gone"]
    /\ UNCHANGED <<heard, wish, resources, store, replied, said>>

-----------------------------------------------------------------------------
\* The resources (RM). A branch is one local transaction in one resource.

Locks(h, r) ==
    /\ before[h][r] # NONE
    /\ ~ Is("no lock check")
    /\ ~ (Is("lock let go before the decision") /\ wish[h] = C)

\* A call arrives: on time, late, or again. The branch row lets it in once.
PhaseOne(t, r) ==
    /\ r \in ResourcesOf(t) /\ Call(t, r) <= heard[t] + 1
    /\ branch[t][r] \in {"none"} \union (IF Is("repeated call taken twice") THEN {"open"} ELSE {})
    /\ running[r] = U
    /\ \A h \in Xids \ {t} : ~ Locks(h, r)
    /\ running' = [running EXCEPT ![r] = t]
    /\ UNCHANGED <<callers, branch, before, row, plain, followed, store, replied, said>>

LocalCommit(t, r) ==
    /\ running[r] = t
    /\ running' = [running EXCEPT ![r] = U]
    /\ branch' = [branch EXCEPT ![t][r] = "open"]
    /\ before' = [before EXCEPT ![t][r] = IF @ = NONE THEN row[r] ELSE @]
    /\ row' = [row EXCEPT ![r] = Written(@, t)]
    /\ replied' = [replied EXCEPT ![t] = IF @ < Call(t, r) THEN Call(t, r) ELSE @]
    /\ UNCHANGED <<callers, plain, followed, store, said>>

\* The process, the connection or the server dies, or the local transaction fails.
ResourceCrash(r) ==
    /\ running[r] # U
    /\ running' = [running EXCEPT ![r] = U]
    /\ UNCHANGED <<callers, branch, before, row, plain, followed, store, replied, said>>

PlainWrite(r) ==
    /\ plain[r] < PlainWrites
    /\ running[r] = U
    /\ Is("plain writers unguarded") \/ Is("plain writers unguarded and undo blind") \/ \A h \in Xids : ~ Locks(h, r)
    /\ plain' = [plain EXCEPT ![r] = @ + 1]
    /\ row' = [row EXCEPT ![r] = Written(@, PLAIN)]
    /\ UNCHANGED <<callers, branch, before, running, followed, store, replied, said>>

Noted(t, r) == followed' = IF FollowedOnce THEN [followed EXCEPT ![t] = @ \union {r}] ELSE followed

Forget(t, r) ==
    /\ branch' = [branch EXCEPT ![t][r] = "forgotten"]
    /\ before' = [before EXCEPT ![t][r] = NONE]
    /\ Noted(t, r)
    /\ UNCHANGED <<callers, row, running, plain, store, replied, said>>

\* Set-wise undo: compares the row with the after image first; overwrites nothing that it does not know.
Undo(t, r) ==
    /\ IF row[r] = Written(before[t][r], t) \/ Is("plain writers unguarded and undo blind")
       THEN /\ row' = [row EXCEPT ![r] = before[t][r]]
            /\ before' = [before EXCEPT ![t][r] = NONE]
            /\ branch' = [branch EXCEPT ![t][r] = "undone"]
       ELSE /\ branch' = [branch EXCEPT ![t][r] = "quarantined"]
            /\ UNCHANGED <<row, before>>
    /\ Noted(t, r)
    /\ UNCHANGED <<callers, running, plain, store, replied, said>>

HasHeard(t, d) == d \in said[t] \/ (Is("resource follows a wish") /\ wish[t] = d)

MayFollow(t, r) ==
    /\ branch[t][r] = "open" /\ running[r] # t
    /\ r \notin followed[t]

\* The settle loop, a nudge, the caller's own news, or a blocked writer that takes over the rows of a decided holder.
FollowCommit(t, r) == MayFollow(t, r) /\ HasHeard(t, C) /\ Forget(t, r)
FollowRollback(t, r) == MayFollow(t, r) /\ HasHeard(t, R) /\ Undo(t, r)

\* A rollback that comes before the call leaves a tombstone, which the call then meets.
Fence(t, r) ==
    /\ r \in ResourcesOf(t) /\ R \in said[t] /\ branch[t][r] = "none" /\ running[r] # t
    /\ r \notin followed[t]
    /\ branch' = [branch EXCEPT ![t][r] = IF FollowedOnce THEN "none" ELSE "tombstone"]
    /\ Noted(t, r)
    /\ UNCHANGED <<callers, before, row, running, plain, store, replied, said>>

\* Forgotten branches are kept until no call can come any more, so nothing happens after they have vanished.
Purge(t, r) ==
    /\ \/ EarlyPurge /\ branch[t][r] \in {"tombstone", "undone"}
       \/ Is("call forgotten too soon") /\ branch[t][r] = "forgotten"
    /\ branch' = [branch EXCEPT ![t][r] = "none"]
    /\ UNCHANGED <<callers, before, row, running, plain, followed, store, replied, said>>

\* What no resource may do.
Misdeed(t, r) ==
    /\ branch[t][r] = "open" /\ running[r] # t
    /\ \/ Is("resource aborts on its own") /\ Undo(t, r)
       \/ Is("undecided holder is taken over") /\ Forget(t, r)

-----------------------------------------------------------------------------
\* The coordinator (TC) and its store. A decision is first in the primary's log; readers see it, and its caller is
\* answered, once the standby has it. Any number of equal coordinators do this: they share nothing but the store.

Admitted == gate \/ Is("no barrier")

Decide(t, d) ==
    /\ Admitted
    /\ disk[t] = U \/ (Is("late commit overrules") /\ d = C /\ disk[t] # C)
    /\ disk' = [disk EXCEPT ![t] = d]
    /\ UNCHANGED <<callers, resources, shown, safe, gate, faults, replied, said>>

TakeCommit(t) == wish[t] = C /\ Decide(t, C)
TakeRollback(t) == wish[t] = R /\ Decide(t, R)

\* The deadline has passed, a cycle of waits was found, or an operator wants it.
Abort(t) == ~ Is("nobody presumes abort") /\ Decide(t, R)

\* A resource asks about an open branch, past its deadline.
Ask(t) ==
    /\ \E r \in Resources : branch[t][r] = "open"
    /\ \/ Abort(t)
       \/ /\ Is("presumed abort without recording") /\ Admitted /\ shown[t] = U
          /\ said' = [said EXCEPT ![t] = @ \union {R}]
          /\ UNCHANGED <<callers, resources, store, replied>>

Visible(t) ==
    IF \/ Is("commit answered before durable") /\ disk[t] = C
       \/ Is("rollback answered before durable") /\ disk[t] = R
    THEN disk[t] ELSE shown[t]

\* An answer to a wish, a question or a wait, or a nudge.
Answer(t) ==
    /\ Admitted
    /\ Visible(t) # U /\ Visible(t) \notin said[t]
    /\ said' = [said EXCEPT ![t] = @ \union {Visible(t)}]
    /\ UNCHANGED <<callers, resources, store, replied>>

\* A synchronous commit has reached the standby, and with it all that stood in the log before.
Replicate ==
    /\ safe # disk
    /\ safe' = disk /\ shown' = disk
    /\ UNCHANGED <<callers, resources, disk, gate, faults, replied, said>>

\* The primary comes back by itself: it shows all that is in its log, also what the standby never got.
StoreRestart ==
    /\ faults < StoreFaults
    /\ faults' = faults + 1
    /\ shown' = disk /\ gate' = FALSE
    /\ UNCHANGED <<callers, resources, disk, safe, replied, said>>

\* The standby takes over; the tail of the log is lost.
Failover ==
    /\ faults < StoreFaults
    /\ faults' = faults + 1
    /\ disk' = safe /\ shown' = safe /\ gate' = FALSE
    /\ UNCHANGED <<callers, resources, safe, replied, said>>

\* The barrier row: a synchronous write before any status is believed.
PassBarrier ==
    /\ ~ gate
    /\ gate' = TRUE
    /\ safe' = disk /\ shown' = disk
    /\ UNCHANGED <<callers, resources, disk, faults, replied, said>>

-----------------------------------------------------------------------------
\* What happens by itself, sooner or later, when no fault intervenes.
Progress ==
    \/ Replicate \/ PassBarrier
    \/ \E t \in Xids :
        \/ HearReply(t) \/ AskCommit(t) \/ AskRollback(t) \/ HearOutcome(t)
        \/ TakeCommit(t) \/ TakeRollback(t) \/ Ask(t) \/ Answer(t)
        \/ \E r \in Resources : LocalCommit(t, r) \/ FollowCommit(t, r) \/ FollowRollback(t, r)

\* What may happen or not: calls and hints that may never arrive, other writers, crashes, losses.
Chance ==
    \/ StoreRestart \/ Failover
    \/ \E r \in Resources : ResourceCrash(r) \/ PlainWrite(r)
    \/ \E t \in Xids :
        \/ CallerCrash(t) \/ Abort(t)
        \/ \E r \in Resources : PhaseOne(t, r) \/ Fence(t, r) \/ Purge(t, r) \/ Misdeed(t, r)

Next == Progress \/ Chance
Spec == Init /\ [][Next]_vars

-----------------------------------------------------------------------------
\* The promises.

TypeOK ==
    /\ pc \in [Xids -> {"working", "deciding", "told C", "told R", "gone"}]
    /\ \A t \in Xids : heard[t] <= replied[t] /\ replied[t] <= Len(Plan[t]) /\ replied[t] <= heard[t] + 1
    /\ branch \in [Xids -> [Resources -> {"none", "open", "forgotten", "undone", "tombstone", "quarantined"}]]
    /\ said \in [Xids -> SUBSET {C, R}]
    /\ {disk, shown, safe} \subseteq [Xids -> {U, C, R}]
    /\ running \in [Resources -> Xids \union {U}]

\* What somebody was told about a transaction is never contradicted, whatever the coordinator loses.
DecisionsStand == \A t \in Xids : Cardinality(said[t]) <= 1

\* While a branch of a transaction is forgotten, no other is undone, refused or missing.
Atomicity ==
    \A t \in Xids : (\E r \in Resources : branch[t][r] = "forgotten")
        => \A r \in ResourcesOf(t) : branch[t][r] \in {"open", "forgotten"}

\* What the caller was told is so: every effect of a commit is there, once, and stays; no effect of a rollback stays.
AcknowledgementsStand ==
    \A t \in Xids :
        /\ pc[t] = "told C" => \A r \in ResourcesOf(t) : row[r][t] = 1 /\ branch[t][r] \in {"open", "forgotten"}
        /\ pc[t] = "told R" => \A r \in Resources : branch[t][r] # "forgotten"

\* No call takes effect twice.
EffectsOnce == \A t \in Xids, r \in Resources : row[r][t] <= 1

\* Nobody writes over a row that an undecided transaction has written.
NoDirtyWrite ==
    \A t \in Xids, r \in Resources : before[t][r] # NONE => row[r] = Written(before[t][r], t)

\* An undo never meets a value that its branch did not leave.
UndoNeverFails == \A t \in Xids, r \in Resources : branch[t][r] # "quarantined"

\* No plain write that was acknowledged is lost.
PlainWritesStay == \A r \in Resources : row[r][PLAIN] = plain[r]

\* Where nothing happens by itself any more, everything is settled: no lock, no open branch, and in each row exactly the
\* effects of the committed transactions.
Settled ==
    \A t \in Xids, r \in Resources :
        /\ branch[t][r] \notin {"open", "quarantined"} /\ before[t][r] = NONE
        /\ row[r][t] = IF safe[t] = C /\ r \in ResourcesOf(t) THEN 1 ELSE 0

NothingIsStuck == (ENABLED Progress) \/ Settled

\* The same for a world that goes on: where what happens by itself is not put off for ever, all ends settled.
FairSpec == Spec /\ WF_vars(Progress)
EverythingSettles == <>[]Settled

-----------------------------------------------------------------------------
\* What must be reachable: each of these is broken by the model as it is, or its promises would say little.

\* Both commit; one commits after all faults; a call finds its tombstone.
NeverBothCommit == \E t \in Xids : pc[t] # "told C"
NeverCommitsAfterFaults == faults < StoreFaults \/ \A t \in Xids : pc[t] # "told C"
NeverLate ==
    \A t \in Xids : \A r \in ResourcesOf(t) : branch[t][r] = "tombstone" => heard[t] + 1 < Call(t, r)
\* One runs in a row that another let go, whose caller has not heard the outcome yet.
NeverTakenOver ==
    \A t, h \in Xids : \A r \in Resources : running[r] = t /\ branch[h][r] = "forgotten" => pc[h] # "deciding"

-----------------------------------------------------------------------------
\* Plans to choose from, and what may change places in them without any difference.
Single == t1 :> <<a, b>>

Crossing == t1 :> <<a, b>> @@ t2 :> <<b, a>>
CrossingSwap == {
    t1 :> t1 @@ t2 :> t2 @@ a :> a @@ b :> b,
    t1 :> t2 @@ t2 :> t1 @@ a :> b @@ b :> a}

Circle == t1 :> <<a, b>> @@ t2 :> <<b, c>> @@ t3 :> <<c, a>>
CircleTurn == {
    t1 :> t1 @@ t2 :> t2 @@ t3 :> t3 @@ a :> a @@ b :> b @@ c :> c,
    t1 :> t2 @@ t2 :> t3 @@ t3 :> t1 @@ a :> b @@ b :> c @@ c :> a,
    t1 :> t3 @@ t2 :> t1 @@ t3 :> t2 @@ a :> c @@ b :> a @@ c :> b}
=============================================================================
