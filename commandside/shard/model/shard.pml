/* The write side's protocol: what can happen to one shard. README.md explains
 * it; model_test.go gives the bounds and runs it.
 *
 * A session is one claim of one instance, from reading the logs to its stop. If
 * an instance claims again, that is another session. Any session may start at any
 * time, so any number of instances may believe that they own the shard. Any
 * session may pause for any time and then go on. All sessions behave alike, so
 * they are numbered in the order in which they start.
 *
 * -DNO_<RULE> leaves a rule out. An assertion must then fail.
 */
#ifndef LOGS
#define LOGS 1          /* logs of the shard */
#endif
#ifndef SESSIONS
#define SESSIONS 3      /* claims, by any number of instances; at most 3 */
#endif
#ifndef APPENDS
#define APPENDS 2       /* commands of a session: each an event of one log, or a refusal */
#endif
#ifndef MAXLOG
#define MAXLOG 6        /* records of one log; the broker appends no more */
#endif
#ifndef WINDOW
#define WINDOW 2        /* appends of one session to one log in flight, in addition to a claim */
#endif
#ifndef ERRORS
#define ERRORS 1        /* appends whose outcome stays unknown: the session stops, and they may still be appended */
#endif
#ifndef RESENDS
#define RESENDS 1       /* lost answers, after which the records are sent and appended a second time */
#endif
#ifndef MAXFENCE
#define MAXFENCE 5      /* records of the fence log; the broker appends no more */
#endif
#ifndef EXPIRIES
#define EXPIRIES 1      /* times that retention removes all records of the fence log */
#endif
#define QUEUE (WINDOW + 1)
#if SESSIONS > 3 || APPENDS > 3 || SESSIONS * APPENDS > 6
#error a record has too few bits for so many terms, seqs or versions
#endif

/* A record, in 14 bits. v0 and v1 are versions in logs 0 and 1. For an event, one
 * is its own version in its own log, and the other is the version in the other
 * log on which it was decided (NONE if the decision did not look there). For a
 * FENCE, they are the terms that its session is about to claim. A CHECK has
 * neither term nor seq nor versions. */
#define CHECK 0
#define CLAIM 1
#define EVENT 2
#define FENCE 3
#define NONE  7
#define RECORD(kind, session, term, seq, v0, v1) ((kind) | (session)<<2 | (term)<<4 | (seq)<<6 | (v0)<<8 | (v1)<<11)
#define KIND(r)       ((r) & 3)
#define SESSION(r)    (((r) >> 2) & 3)
#define TERM(r)       (((r) >> 4) & 3)
#define SEQ(r)        (((r) >> 6) & 3)
#define VERSION(r, l) (((r) >> (8 + 3*(l))) & 7)

/* A partition, and the result of a reader that has read it from the beginning. */
typedef partition {
	short record[MAXLOG];
	byte size;
	byte term;      /* of the last valid claim */
	byte seq;       /* of the last valid record in that term */
	byte events;    /* number of valid events, which is the state's version */
	short valid     /* one bit per offset */
};
partition log[LOGS];
byte acknowledged[LOGS]; /* the last version that anybody was told of, by an acknowledgement or a refusal */

/* The fence log: one partition beside the logs, from which retention removes old
 * records. The reader rule does not apply to it. */
typedef fencelog {
	short record[MAXFENCE];
	byte size;
	byte kept   /* offset of the first record that retention has not removed */
};
fencelog fence;

/* What a session knows of one log. See partitionLog in log.go. */
typedef logend {
	bit read;             /* the log was read to its end, when the session started */
	bit held;             /* the claim is known to be valid */
	byte term, seq, next; /* the reader rule up to next, the expected offset of the oldest append */
	byte lastseq;         /* of the last record sent */
	byte version;         /* of the state in memory, with unacknowledged appends */
	byte acked;           /* version that is acknowledged */
	/* Appends without an answer, oldest first. The first `landed` of them are in
	 * the log, at `offset`; of these the first `known` were already acknowledged
	 * when the log was read. After a stop, only those remain that may still be
	 * appended. */
	short queue[QUEUE];
	byte offset[QUEUE];
	byte queued, landed, known
};
#define IDLE    0
#define OPENING 1
#define SERVING 2
#define STOPPED 3
typedef session {
	byte mode;
	byte appends;
	/* What the session knows of the fence log: the record that it has sent and that
	 * has no answer, whether and at which offset that is in the log, and the offset
	 * behind its last record that has an answer. See fence.go. */
	short sent;
	bit sending, landed;
	byte offset, next;
	/* The refusal that waits, at most one: the versions that it rests on, and the
	 * versions that anybody had been told of when its question came. It awaits a
	 * confirmation for each log: by an event of that log with the seq in `by`, once
	 * one is sent, or by a CHECK, which serves all logs that still await one. */
	bit refusing, checking;
	bit awaits[LOGS];
	byte by[LOGS], rests[LOGS], told[LOGS];
	logend at[LOGS]
};
byte started, errors, resends, expiries;

/* Temporary variables, which are no part of the state. */
hidden byte ii, jj, ll;
hidden short own;
hidden byte ok, mine, invalid;
hidden byte rterm, rseq, count, off;
hidden short seen;

/* The replay of a counterexample prints this. */
#define NAME(r) (KIND(r) == CLAIM -> 'C' : (KIND(r) == EVENT -> 'E' : (KIND(r) == FENCE -> 'F' : '?')))
inline tell(R) {
	printf("%c term %d seq %d of session %d, versions %d %d", NAME(R), TERM(R), SEQ(R), SESSION(R), VERSION(R, 0), VERSION(R, 1))
}

/* rule: the reader rule, eventlog/rule.go. It sets ok and moves term and seq. */
#ifdef NO_TERM
#define OFTERM(r, term) (term > 0)
#else
#define OFTERM(r, term) (TERM(r) == term)
#endif
#ifdef NO_SEQ
#define NEXTSEQ(r, seq) true
#else
#define NEXTSEQ(r, seq) (SEQ(r) == seq + 1)
#endif
inline rule(R, T, Q) {
	if
	:: KIND(R) == CLAIM && TERM(R) == T + 1 -> T = TERM(R); Q = 0; ok = 1
	:: KIND(R) != CLAIM && OFTERM(R, T) && NEXTSEQ(R, Q) -> Q = SEQ(R); ok = 1
	:: else -> ok = 0
	fi
}

/* readers: a reader that starts at a stored position derives the same history as
 * one that starts at the beginning. A stored position is that of a valid record,
 * with its term and seq. */
#ifdef NO_VALIDPOSITION
#define STORED(l, k) true
#else
#define STORED(l, k) ((log[l].valid >> (k)) & 1)
#endif
inline readers(l) {
	ii = 0;
	do
	:: ii < log[l].size ->
		if
		:: STORED(l, ii) ->
			rterm = TERM(log[l].record[ii]); rseq = SEQ(log[l].record[ii]);
			seen = log[l].valid & ((2 << ii) - 1);
			jj = ii + 1;
			do
			:: jj < log[l].size ->
				rule(log[l].record[jj], rterm, rseq);
				if :: ok -> seen = seen | (1 << jj) :: else fi;
				jj++
			:: else -> break
			od;
			assert(seen == log[l].valid && rterm == log[l].term && rseq == log[l].seq) /* readers agree */
		:: else
		fi;
		ii++
	:: else -> break
	od
}

/* premise: no other session has changed log l since the version on which the
 * record was decided. Its own session may have, with later events. */
inline premise(rec, l) {
	ii = 0; count = 0;
	do
	:: ii < log[l].size ->
		if
		:: ((log[l].valid >> ii) & 1) && KIND(log[l].record[ii]) == EVENT ->
			count++;
			assert(count <= VERSION(rec, l) || SESSION(log[l].record[ii]) == SESSION(rec)) /* events are decided on the present state of the other log */
		:: else
		fi;
		ii++
	:: else -> break
	od
}

/* land: the broker appends a record. A valid record stays valid, because the rule
 * does not look at later records. */
inline land(l, rec) {
	log[l].record[log[l].size] = rec;
	rule(rec, log[l].term, log[l].seq);
	printf("log %d @%d: ", l, log[l].size); tell(rec);
	if
	:: ok -> log[l].valid = log[l].valid | (1 << log[l].size); printf(": valid\n")
	:: else -> printf(": invalid\n")
	fi;
	log[l].size++;
	if
	:: ok && KIND(rec) == EVENT ->
		log[l].events++;
		assert(VERSION(rec, l) == log[l].events) /* versions of valid events are 1, 2, 3, ... */
#if LOGS == 2
		if
		:: VERSION(rec, 1-l) != NONE ->
			assert(VERSION(rec, 1-l) <= log[1-l].events); /* events are decided on valid events */
			premise(rec, 1-l)
		:: else
		fi
#endif
	:: else
	fi;
	readers(l)
}

/* stop: the session ends. Appends that are not in the log may still be appended. */
inline stop(x) {
	printf("session %d stops\n", id);
	x.mode = STOPPED; x.appends = 0; x.refusing = 0; x.checking = 0; x.next = 0; x.offset = 0;
	if :: x.landed -> x.sending = 0; x.landed = 0; x.sent = 0 :: else fi;
	ll = 0;
	do
	:: ll < LOGS ->
		ii = 0;
		do
		:: ii < QUEUE ->
			if
			:: ii + x.at[ll].landed < x.at[ll].queued -> x.at[ll].queue[ii] = x.at[ll].queue[ii + x.at[ll].landed]
			:: else -> x.at[ll].queue[ii] = 0
			fi;
			x.at[ll].offset[ii] = 0;
			ii++
		:: else -> break
		od;
		x.at[ll].queued = x.at[ll].queued - x.at[ll].landed;
		x.awaits[ll] = 0; x.by[ll] = 0; x.rests[ll] = 0; x.told[ll] = 0;
		x.at[ll].landed = 0; x.at[ll].known = 0; x.at[ll].read = 0; x.at[ll].held = 0;
		x.at[ll].term = 0; x.at[ll].seq = 0; x.at[ll].next = 0; x.at[ll].lastseq = 0; x.at[ll].version = 0; x.at[ll].acked = 0;
		ll++
	:: else -> break
	od
}

/* pop removes the oldest append, which has its answer, from the queue. */
inline pop(E) {
	ii = 0;
	do
	:: ii + 1 < QUEUE -> E.queue[ii] = E.queue[ii+1]; E.offset[ii] = E.offset[ii+1]; ii++
	:: else -> break
	od;
	E.queue[QUEUE-1] = 0; E.offset[QUEUE-1] = 0;
	E.queued--; E.landed--
}

/* send appends without waiting. */
inline send(E, rec) {
	printf("session %d sends ", id); tell(rec); printf("\n");
	E.queue[E.queued] = rec;
	E.queued++
}

/* acknowledge: the callers whose append is at this offset get their answer. */
inline acknowledge(x, l, rec, where) {
	printf("session %d: acknowledged in log %d @%d: ", id, l, where); tell(rec); printf("\n");
	assert((log[l].valid >> where) & 1 && log[l].record[where] == rec); /* everything acknowledged is valid */
	x.at[l].acked = VERSION(rec, l);
	if :: x.by[l] > 0 && SEQ(rec) >= x.by[l] -> x.by[l] = 0 :: else fi;
	if :: VERSION(rec, l) > acknowledged[l] -> acknowledged[l] = VERSION(rec, l) :: else fi
}

/* agrees: the owner has read the log up to next as every other reader does. */
inline agrees(E, l) {
	ii = 0; rterm = 0; rseq = 0;
	do
	:: ii < E.next -> rule(log[l].record[ii], rterm, rseq); ii++
	:: else -> break
	od;
	assert(rterm == E.term && rseq == E.seq) /* owner and readers agree */
}

/* claimed: the claim's acknowledgement, with offset `off`. If it is the expected
 * one, the claim is valid. Otherwise the records in between are read. */
inline claimed(x, l) {
	off = x.at[l].offset[0];
	own = x.at[l].queue[0];
#ifdef NO_CLAIMFIRST
	pop(x.at[l])
#else
#ifdef NO_CONTIGUITY
	mine = 1; x.at[l].term = TERM(own); x.at[l].seq = 0;
#else
	if
	:: off == x.at[l].next -> mine = 1; x.at[l].term++; x.at[l].seq = 0
	:: else ->
		mine = 0;
		jj = x.at[l].next;
		do
		:: jj <= off ->
			rule(log[l].record[jj], x.at[l].term, x.at[l].seq);
			if
			:: ok && KIND(log[l].record[jj]) == CLAIM ->
#ifdef NO_CLAIMID
				mine = (TERM(log[l].record[jj]) == TERM(own))
#else
				mine = (log[l].record[jj] == own)
#endif
			:: else
			fi;
			jj++
		:: else -> break
		od
	fi;
#endif
	if
	:: !mine ->
#ifdef NO_REFENCE
		/* The session claims the next term at once, without a FENCE for it. */
		if
		:: started < SESSIONS && x.at[l].queued < QUEUE ->
			started++; /* a claim more, and a session less */
			x.at[l].next = off + 1;
			ii = 0; count = 0;
			do
			:: ii <= off -> if :: ((log[l].valid >> ii) & 1) && KIND(log[l].record[ii]) == EVENT -> count++ :: else fi; ii++
			:: else -> break
			od;
			x.at[l].version = count; x.at[l].acked = count;
			pop(x.at[l]);
			send(x.at[l], RECORD(CLAIM, id, x.at[l].term + 1, 0, 0, 0))
		:: else -> stop(x)
		fi
#else
		stop(x)
#endif
	:: else ->
		x.at[l].next = off + 1; x.at[l].held = 1;
		ii = 0; count = 0;
		do
		:: ii < off -> if :: ((log[l].valid >> ii) & 1) && KIND(log[l].record[ii]) == EVENT -> count++ :: else fi; ii++
		:: else -> break
		od;
		x.at[l].version = count; x.at[l].acked = count;
		pop(x.at[l]);
#ifndef NO_CONTIGUITY
		agrees(x.at[l], l);
#endif
		printf("session %d: its claim of log %d is valid\n", id, l);
		if :: x.at[0].held && x.at[LOGS-1].held -> x.mode = SERVING :: else fi
	fi
#endif
}

/* answered: an append's acknowledgement, with offset `off`. See takeAcks and verify in acknowledge.go. */
inline answered(x, l) {
	off = x.at[l].offset[0];
	own = x.at[l].queue[0];
	if
	:: off < x.at[l].next -> /* already read when an earlier append was verified */
		assert(x.at[l].known > 0); /* owner and readers agree */
		x.at[l].known--;
		pop(x.at[l])
#ifdef NO_CONTIGUITY
	:: else ->
#else
	:: off == x.at[l].next && x.at[l].known == 0 ->
#endif
		/* The offset is the expected one: no other record is in between. */
		x.at[l].next = off + 1; x.at[l].seq = SEQ(own);
		acknowledge(x, l, own, off);
		pop(x.at[l])
#ifndef NO_CONTIGUITY
	:: else ->
		invalid = 0; jj = x.at[l].next;
		do
		:: jj <= off && !invalid ->
			rule(log[l].record[jj], x.at[l].term, x.at[l].seq);
			if
#ifndef NO_BETWEEN
			:: ok && KIND(log[l].record[jj]) == CLAIM -> invalid = 1 /* deposed */
#endif
			:: ok && KIND(log[l].record[jj]) != CLAIM ->
				assert(x.at[l].known < x.at[l].queued); /* owner and readers agree */
				acknowledge(x, l, x.at[l].queue[x.at[l].known], jj);
				x.at[l].known++
			:: else
			fi;
			jj++
		:: else -> break
		od;
		if
		:: invalid || x.at[l].known == 0 -> stop(x)
		:: else ->
			x.at[l].next = off + 1; x.at[l].known--;
			pop(x.at[l]);
#ifndef NO_BETWEEN
			agrees(x.at[l], l)
#endif
		fi
#endif
	fi
}

inline claim(x, id, l) {
	send(x.at[l], RECORD(CLAIM, id, x.at[l].term + 1, 0, 0, 0));
#ifdef NO_CLAIMFIRST
	x.at[l].term++; x.at[l].seq = 0; x.at[l].next++; x.at[l].held = 1;
	x.mode = SERVING
#endif
}
inline claims(x, id) {
	claim(x, id, 0);
#if LOGS == 2
	claim(x, id, 1)
#endif
}
inline sendfence(x, id) {
	x.sending = 1;
	x.sent = RECORD(FENCE, id, 0, 0, x.at[0].term + 1, x.at[LOGS-1].term + 1);
	printf("session %d sends FENCE for terms %d %d\n", id, x.at[0].term + 1, x.at[LOGS-1].term + 1)
}

/* open: log l is read to its end. The logs are read in any order, with any time in
 * between. The FENCE is sent when all logs are read, and the claims when the FENCE
 * is acknowledged. */
inline open(x, id, l) {
	if :: x.mode == IDLE -> x.mode = OPENING; started++ :: else fi;
	x.at[l].read = 1;
	printf("session %d has read log %d up to %d\n", id, l, log[l].size);
	x.at[l].term = log[l].term; x.at[l].seq = log[l].seq; x.at[l].next = log[l].size;
	x.at[l].version = log[l].events; x.at[l].acked = log[l].events;
#ifdef NO_READFIRST
	claim(x, id, l)
#else
	if
	:: x.at[0].read && x.at[LOGS-1].read ->
		sendfence(x, id);
#ifdef NO_FENCEFIRST
		claims(x, id)
#endif
	:: else
	fi
#endif
}

/* fenced: the answer to the record that the session has sent to the fence log. A
 * FENCE lets the session send its claims. A CHECK confirms the refusal, unless a
 * FENCE for a higher term is before it. */
inline fenced(x, id) {
	off = x.offset; own = x.sent;
	x.sending = 0; x.landed = 0; x.sent = 0; x.offset = 0;
	if
	:: KIND(own) == FENCE ->
		x.next = off + 1;
		printf("session %d: its FENCE is at offset %d\n", id, off);
#ifndef NO_FENCEFIRST
		claims(x, id)
#endif
	:: else ->
		jj = x.next; ok = 1;
		do
		:: jj < off ->
#ifdef NO_RETENTION
			if :: jj < fence.kept -> jj = fence.kept :: else fi;
			if :: jj >= off -> break :: else fi;
#else
			if :: jj < fence.kept -> ok = 0; break :: else fi;
#endif
#ifndef NO_HIGHER
			if
			:: KIND(fence.record[jj]) == FENCE && (VERSION(fence.record[jj], 0) > x.at[0].term || LOGS == 2 && VERSION(fence.record[jj], 1) > x.at[LOGS-1].term) -> ok = 0; break
			:: else
			fi;
#endif
			jj++
		:: else -> break
		od;
		if
		:: ok -> x.next = off + 1; x.checking = 0; printf("session %d: its CHECK at offset %d confirms\n", id, off)
		:: else -> printf("session %d: its CHECK at offset %d does not confirm\n", id, off); stop(x)
		fi
	fi
}
#define MAYOPEN(id, l) ((me.mode == IDLE && id == started || me.mode == OPENING) && !me.at[l].read)

#ifdef NO_BOTHCLAIMS
#define SERVES(l) ((me.mode == OPENING || me.mode == SERVING) && me.at[l].held)
#else
#define SERVES(l) (me.mode == SERVING)
#endif
#define CLAIMING(e)   (e.queued > 0 && KIND(e.queue[0]) == CLAIM)
#define FREE(e)       (e.queued < WINDOW + CLAIMING(e))
#define MAYAPPEND(l) (SERVES(l) && me.appends < APPENDS && FREE(me.at[l]))

/* append: an event of log l. `other` is the version in the other log on which it
 * was decided, or NONE. */
inline append(x, id, l, other) {
	x.appends++; x.at[l].lastseq++; x.at[l].version++;
	if :: x.awaits[l] -> x.awaits[l] = 0; x.by[l] = x.at[l].lastseq :: else fi;
#if LOGS == 2
	if
	:: l == 0 -> send(x.at[l], RECORD(EVENT, id, x.at[l].term, x.at[l].lastseq, x.at[l].version, other))
	:: else -> send(x.at[l], RECORD(EVENT, id, x.at[l].term, x.at[l].lastseq, other, x.at[l].version))
	fi
#else
	send(x.at[l], RECORD(EVENT, id, x.at[l].term, x.at[l].lastseq, x.at[l].version, other))
#endif
}

/* A decision that looks at the other log waits until the events that it sees
 * there are acknowledged. */
#ifdef NO_ACKEDPREMISE
#define PREMISED(l) (me.mode == SERVING)
#else
#define PREMISED(l) (me.mode == SERVING && me.at[l].version == me.at[l].acked)
#endif

/* refuse: a question comes, and the refusal rests on the state in all logs,
 * including unacknowledged appends. */
inline refuse(x, id) {
	x.appends++; x.refusing = 1;
	x.rests[0] = x.at[0].version; x.told[0] = acknowledged[0]; x.awaits[0] = 1;
#if LOGS == 2
	x.rests[1] = x.at[1].version; x.told[1] = acknowledged[1]; x.awaits[1] = 1;
#endif
#ifdef NO_CHECK
	x.awaits[0] = 0; x.awaits[LOGS-1] = 0;
#endif
	printf("session %d is asked, and its refusal rests on versions %d %d\n", id, x.rests[0], x.rests[LOGS-1])
}

/* check: one CHECK is sent for all logs that await a confirmation. */
#define AWAITS (me.awaits[0] || me.awaits[LOGS-1])
#define CONFIRMED (!AWAITS && !me.checking && me.by[0] == 0 && me.by[LOGS-1] == 0)
inline check(x, id) {
	x.awaits[0] = 0; x.awaits[LOGS-1] = 0; x.checking = 1;
	x.sending = 1; x.sent = RECORD(CHECK, id, 0, 0, 0, 0)
}

/* answer: the refusal leaves when it is confirmed for all logs, and the events that it
 * rests on are acknowledged. It must have every event that anybody was told of
 * before the question, and no event that is invalid. */
#ifdef NO_ACKED
#define RESTACKED true
#else
#define RESTACKED (me.rests[0] <= me.at[0].acked && me.rests[LOGS-1] <= me.at[LOGS-1].acked)
#endif
inline answer(x, id) {
	printf("session %d refuses\n", id);
	x.refusing = 0;
	ll = 0;
	do
	:: ll < LOGS ->
		assert(x.rests[ll] >= x.told[ll]); /* no refusal is stale */
		ii = 0; count = 0; mine = (x.rests[ll] <= x.at[ll].acked);
		do
		:: ii < log[ll].size ->
			if
			:: ((log[ll].valid >> ii) & 1) && KIND(log[ll].record[ii]) == EVENT ->
				count++;
				if :: count == x.rests[ll] && SESSION(log[ll].record[ii]) == id -> mine = 1 :: else fi
			:: else
			fi;
			ii++
		:: else -> break
		od;
		assert(mine && count >= x.rests[ll]); /* refusals rest on valid events */
		if :: x.rests[ll] > acknowledged[ll] -> acknowledged[ll] = x.rests[ll] :: else fi;
		x.rests[ll] = 0; x.told[ll] = 0;
		ll++
	:: else -> break
	od
}

/* landfence: the broker appends the session's record to the fence log. */
inline landfence(x, id) {
	fence.record[fence.size] = x.sent; x.offset = fence.size; x.landed = 1;
	printf("fence log @%d: %c of session %d, terms %d %d\n", fence.size, NAME(x.sent), id, VERSION(x.sent, 0), VERSION(x.sent, 1));
	fence.size++;
	if :: x.mode == STOPPED -> x.sending = 0; x.landed = 0; x.sent = 0; x.offset = 0 :: else fi
}

/* resend: the answers are lost. The records are sent and appended again, and the
 * later offset is reported. */
inline resend(x, l) {
	printf("session %d: answers of log %d are lost\n", id, l);
	resends++;
	ll = 0;
	do
	:: ll < x.at[l].landed && log[l].size < MAXLOG ->
		x.at[l].offset[ll] = log[l].size;
		land(l, x.at[l].queue[ll]);
		ll++
	:: else -> break
	od
}

#define ANSWERABLE(l) ((me.mode == OPENING || me.mode == SERVING) && me.at[l].landed > 0)
#define INFLIGHT (me.at[0].queued > 0 || me.at[LOGS-1].queued > 0 || me.sending)

#define STEPS(l) \
	:: d_step { MAYOPEN(id, l) -> open(me, id, l); skip } \
	:: d_step { MAYAPPEND(l) -> append(me, id, l, NONE); skip } \
	:: d_step { ANSWERABLE(l) && KIND(me.at[l].queue[0]) == CLAIM -> claimed(me, l); skip } \
	:: d_step { ANSWERABLE(l) && KIND(me.at[l].queue[0]) != CLAIM -> answered(me, l); skip } \
	/* the broker appends a record, in the order sent, also one of a stopped session */ \
	:: d_step { me.at[l].queued > me.at[l].landed && log[l].size < MAXLOG -> \
		land(l, me.at[l].queue[me.at[l].landed]); \
		me.at[l].offset[me.at[l].landed] = log[l].size - 1; \
		me.at[l].landed++; \
		if :: me.mode == STOPPED -> me.at[l].offset[0] = 0; pop(me.at[l]) :: else fi; skip } \
	:: d_step { ANSWERABLE(l) && resends < RESENDS && log[l].size + me.at[l].landed <= MAXLOG -> resend(me, l); skip }

active [SESSIONS] proctype shard() {
	byte id = _pid;
	session me;
end:	do
	STEPS(0)
#if LOGS == 2
	STEPS(1)
	:: d_step { MAYAPPEND(0) && PREMISED(1) -> append(me, id, 0, me.at[1].version); skip }
	:: d_step { MAYAPPEND(1) && PREMISED(0) -> append(me, id, 1, me.at[0].version); skip }
#endif
	:: d_step { me.mode == SERVING && me.appends < APPENDS && !me.refusing -> refuse(me, id); skip }
	:: d_step { me.mode == SERVING && me.refusing && AWAITS && !me.sending -> check(me, id); skip }
	:: d_step { me.mode == SERVING && me.refusing && CONFIRMED && RESTACKED -> answer(me, id); skip }
	:: d_step { me.sending && !me.landed && fence.size < MAXFENCE -> landfence(me, id); skip }
	:: d_step { (me.mode == OPENING || me.mode == SERVING) && me.landed -> fenced(me, id); skip }
	/* the answer of the fence log is lost, and the record is appended again */
	:: d_step { (me.mode == OPENING || me.mode == SERVING) && me.landed && resends < RESENDS && fence.size < MAXFENCE -> resends++; landfence(me, id); skip }
	:: d_step { id == 0 && expiries < EXPIRIES && fence.kept < fence.size -> expiries++; fence.kept = fence.size; printf("retention removes the fence log up to offset %d\n", fence.size); skip }
	/* The outcome of an append is not known: the session ends. */
	:: d_step { (me.mode == OPENING || me.mode == SERVING) && INFLIGHT && errors < ERRORS -> errors++; stop(me); skip }
	od
}
