/* Take-overs: an assigned shard serves again after the last fault. README.md
 * explains it; model_test.go runs it.
 *
 * There are two instances and a shard of two logs. Terms are not bounded: of a
 * claim the model only keeps whether its term is still the next one of its log,
 * and of a log only whose claim is valid. The appends under a claim are in
 * shard.pml.
 *
 * -DNO_<RULE> leaves a rule out. The formula `serves` must then fail.
 */
#ifndef FAULTS
#define FAULTS 3     /* moves of the assignment, and sessions that end with an unknown outcome */
#endif
#define LOGS 2

/* A claim of the present session of an instance. */
#define UNREAD 0
#define GOOD   1     /* the log is read; the claim is not in it yet, and has the next term */
#define LATER  2     /* the same, but another claim of that term was appended first */
#define WON    3     /* the claim is in the log and valid */
#define LOST   4     /* the claim is in the log and invalid */

/* An instance. */
#define UNASSIGNED 0 /* the shard is not assigned to it, as far as it knows */
#define OPENING 1    /* reading, claiming */
#define SERVING 2
#define ASKING  3    /* stopped; it waits until the group confirms its assignment */

#define NOBODY 2
byte assigned;           /* the instance to which the group has assigned the shard */
bit told[2];             /* what the callbacks have reported; they report only changes */
bit cut[2];              /* the instance cannot reach the group, but it can reach the logs */
byte mode[2];
typedef claims { byte on[LOGS] };
claims claim[2];
byte holder[LOGS] = NOBODY; /* the instance whose present session has the valid claim */
byte ghosts[LOGS];       /* claims of ended sessions that may still be appended and become valid */
byte faults;

#define holds(x) (holder[0] == x && holder[1] == x)
ltl serves { <>[] ((assigned == 0 && mode[0] == SERVING && holds(0)) || (assigned == 1 && mode[1] == SERVING && holds(1))) }

/* claimValid: a valid claim is appended, so no other claim with its term can be
 * valid. */
inline claimValid(l, who) {
	if :: claim[0].on[l] == GOOD -> claim[0].on[l] = LATER :: else fi;
	if :: claim[1].on[l] == GOOD -> claim[1].on[l] = LATER :: else fi;
	ghosts[l] = 0;
	holder[l] = who
}

/* stop: the session ends. Its claims that are not in the log may still be appended. */
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
	:: d_step { mode[x] == OPENING && SENT(x) && claim[x].on[l] == GOOD -> claim[x].on[l] = WON; claimValid(l, x) } \
	:: d_step { mode[x] == OPENING && SENT(x) && claim[x].on[l] == LATER -> claim[x].on[l] = LOST }

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
	/* There are always commands. Their appends show a session that it is deposed. */
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
	:: d_step { told[1-assigned] && !cut[1-assigned] -> told[1-assigned] = 0; stop((1-assigned), UNASSIGNED) }
	od
}

active proctype fault() {
end:	do
	:: d_step { faults < FAULTS -> faults++; assigned = 1 - assigned; cut[assigned] = 0 }
	:: d_step { faults < FAULTS -> faults++; assigned = 1 - assigned; cut[assigned] = 0; cut[1-assigned] = 1 }
	:: d_step { faults < FAULTS && (mode[0] == OPENING || mode[0] == SERVING) -> faults++; stop(0, ASKING) }
	:: d_step { faults < FAULTS && (mode[1] == OPENING || mode[1] == SERVING) -> faults++; stop(1, ASKING) }
	:: d_step { faults < FAULTS -> faults = FAULTS } /* no more */
	:: d_step { ghosts[0] > 0 -> claimValid(0, NOBODY) }
	:: d_step { ghosts[1] > 0 -> claimValid(1, NOBODY) }
	:: d_step { ghosts[0] > 0 -> ghosts[0] = 0 } /* it is never appended */
	:: d_step { ghosts[1] > 0 -> ghosts[1] = 0 }
	:: else -> skip /* time goes on */
	od
}
