/* Take-overs: an assigned shard serves again after the last fault. README.md
 * explains it; model_test.go runs it.
 *
 * Two instances, a shard of two logs, and no bound on terms: of a claim this
 * only remembers whether it still is the next one of its log, of a log only
 * whose claim counts. What is appended under a claim is shard.pml's matter.
 *
 * -DNO_<RULE> leaves a rule out; the formula `serves` must then fail.
 */
#ifndef FAULTS
#define FAULTS 3     /* moves of the assignment, and sessions that end with an unknown outcome */
#endif
#define LOGS 2

/* A claim of the present session of an instance. */
#define UNREAD 0
#define GOOD   1     /* read to the end, claim not landed: its term is the last one's + 1 */
#define VOID   2     /* the same, but another was first */
#define WON    3     /* landed, and counted there */
#define LOST   4     /* landed, void */

/* An instance. */
#define AWAY    0    /* not assigned, as far as it knows */
#define OPENING 1    /* reading, claiming */
#define SERVING 2
#define ASKING  3    /* stopped: waits for the group to confirm its assignment */

#define NOBODY 2
byte assigned;           /* as the group has it */
bit told[2];             /* what the callbacks have said; they report what is new */
bit cut[2];              /* the group does not reach it, the logs do */
byte mode[2];
typedef claims { byte on[LOGS] };
claims claim[2];
byte holder[LOGS] = NOBODY; /* whose present session's claim counts */
byte ghosts[LOGS];       /* claims of ended sessions that may still land and count */
byte faults;

#define holds(x) (holder[0] == x && holder[1] == x)
ltl serves { <>[] ((assigned == 0 && mode[0] == SERVING && holds(0)) || (assigned == 1 && mode[1] == SERVING && holds(1))) }

/* counts: a claim lands that counts, so no other with its term will. */
inline counts(l, who) {
	if :: claim[0].on[l] == GOOD -> claim[0].on[l] = VOID :: else fi;
	if :: claim[1].on[l] == GOOD -> claim[1].on[l] = VOID :: else fi;
	ghosts[l] = 0;
	holder[l] = who
}

/* stop: the session is over; its claims that have not landed still may. */
inline stopLog(x, l) {
	if :: claim[x].on[l] == GOOD -> ghosts[l]++ :: else fi;
	if :: holder[l] == x -> holder[l] = NOBODY :: else fi;
	claim[x].on[l] = UNREAD
}
inline stop(x, next) {
	if
	:: claim[x].on[0] == UNREAD || claim[x].on[1] == UNREAD -> claim[x].on[0] = UNREAD; claim[x].on[1] = UNREAD /* none was sent */
	:: else
	fi;
	stopLog(x, 0);
	stopLog(x, 1);
	mode[x] = next
}

#define SENT(x) (claim[x].on[0] != UNREAD && claim[x].on[1] != UNREAD)
#define CLAIM(l) \
	:: d_step { mode[x] == OPENING && claim[x].on[l] == UNREAD -> claim[x].on[l] = GOOD } \
	:: d_step { mode[x] == OPENING && SENT(x) && claim[x].on[l] == GOOD -> claim[x].on[l] = WON; counts(l, x) } \
	:: d_step { mode[x] == OPENING && SENT(x) && claim[x].on[l] == VOID -> claim[x].on[l] = LOST }

active [2] proctype instance() {
	byte x = _pid;
end:	do
	CLAIM(0)
	CLAIM(1)
	:: d_step { mode[x] == OPENING && claim[x].on[0] >= WON && claim[x].on[1] >= WON ->
		if
		:: claim[x].on[0] == WON && claim[x].on[1] == WON -> mode[x] = SERVING
		:: else -> stop(x, ASKING)
		fi }
	/* Commands keep coming: their appends show that it is deposed. */
	:: d_step { mode[x] == SERVING && !holds(x) -> stop(x, ASKING) }
#if defined(NO_CONFIRM)
	:: d_step { mode[x] == ASKING -> mode[x] = OPENING }
#elif !defined(NO_REOPEN)
	:: d_step { mode[x] == ASKING && assigned == x -> mode[x] = OPENING }
#endif
	od
}

active proctype group() {
end:	do
	:: d_step { !told[assigned] -> told[assigned] = 1; mode[assigned] = OPENING }
	:: d_step { told[1-assigned] && !cut[1-assigned] -> told[1-assigned] = 0; stop((1-assigned), AWAY) }
	od
}

active proctype fault() {
end:	do
	:: d_step { faults < FAULTS -> faults++; assigned = 1 - assigned; cut[assigned] = 0 }
	:: d_step { faults < FAULTS -> faults++; assigned = 1 - assigned; cut[assigned] = 0; cut[1-assigned] = 1 }
	:: d_step { faults < FAULTS && (mode[0] == OPENING || mode[0] == SERVING) -> faults++; stop(0, ASKING) }
	:: d_step { faults < FAULTS && (mode[1] == OPENING || mode[1] == SERVING) -> faults++; stop(1, ASKING) }
	:: d_step { faults < FAULTS -> faults = FAULTS } /* no more */
	:: d_step { ghosts[0] > 0 -> counts(0, NOBODY) }
	:: d_step { ghosts[1] > 0 -> counts(1, NOBODY) }
	:: d_step { ghosts[0] > 0 -> ghosts[0] = 0 } /* never lands */
	:: d_step { ghosts[1] > 0 -> ghosts[1] = 0 }
	:: else -> skip /* time goes on */
	od
}
