/* The write side's protocol: what can happen to one shard. README.md explains
 * it; model_test.go gives the bounds and runs it.
 *
 * A session is one claim of one instance, from reading the logs to having
 * stopped. An instance that claims anew is another session. Any session may
 * start at any time, so any number of instances may think that the shard is
 * theirs; any may stand still for as long as it likes and then go on.
 * Sessions are alike: they are numbered in the order in which they start.
 *
 * -DNO_<RULE> leaves a rule out; an assertion must then fail.
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
#define MAXLOG 6        /* records of one log; what would land behind does not */
#endif
#ifndef WINDOW
#define WINDOW 2        /* appends of one session to one log without an answer, a claim aside */
#endif
#ifndef ERRORS
#define ERRORS 1        /* appends whose outcome stays unknown: the session ends, they may still land */
#endif
#ifndef RESENDS
#define RESENDS 1       /* lost answers after which what had landed is sent again, and lands twice */
#endif
#define QUEUE (WINDOW + 1)
#if SESSIONS > 3 || APPENDS > 3 || SESSIONS * APPENDS > 6
#error a record has no room for so many terms, seqs or versions
#endif

/* A record, in 14 bits. v0 and v1 are versions of logs 0 and 1: of an event its
 * own in its own log, and in the other the version that it was decided on
 * (NONE: it did not look there); of a SEEN what the refusal rests on. */
#define CLAIM 1
#define EVENT 2
#define SEEN  3
#define NONE  7
#define RECORD(kind, session, term, seq, v0, v1) ((kind) | (session)<<2 | (term)<<4 | (seq)<<6 | (v0)<<8 | (v1)<<11)
#define KIND(r)       ((r) & 3)
#define SESSION(r)    (((r) >> 2) & 3)
#define TERM(r)       (((r) >> 4) & 3)
#define SEQ(r)        (((r) >> 6) & 3)
#define VERSION(r, l) (((r) >> (8 + 3*(l))) & 7)

/* A partition, and what a reader that began at its start makes of it. */
typedef partition {
	short record[MAXLOG];
	byte size;
	byte term;      /* of the last claim that counts */
	byte seq;       /* last that counted in it */
	byte events;    /* that count: the state's version */
	short counts    /* bit per offset */
};
partition log[LOGS];

/* A session's end of one log: partitionLog in log.go. */
typedef logend {
	bit read;             /* to its end, when the session started */
	bit held;             /* the claim is known to count */
	byte term, seq, next; /* the reader rule as of next, the offset where the oldest append must land */
	byte lastseq;         /* last sent */
	byte version;         /* of the state decided on, moved on speculatively */
	byte acked;           /* version that is acknowledged */
	/* Appends without an answer, oldest first: `landed` of them have landed,
	 * at `offset`; of these `known` were acknowledged already, by reading.
	 * Once stopped only those remain that may still land. */
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
	/* A refusal that waits, one at a time: the versions it rests on, the logs
	 * whose SEEN is to be sent, and in how many it is acknowledged. */
	bit refusing;
	byte rests[LOGS];
	bit awaits[LOGS];
	byte confirmed;
	logend at[LOGS]
};
byte started, errors, resends;

/* Scratch, no part of the state. */
hidden byte ii, jj, ll;
hidden short own;
hidden byte ok, mine, isvoid;
hidden byte rterm, rseq, count, off;
hidden short seen;

/* What a counterexample's replay prints. */
#define NAME(r) (KIND(r) == CLAIM -> 'C' : (KIND(r) == EVENT -> 'E' : 'S'))
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

/* readers: whoever resumes at a stored position derives the same history as
 * who began at the start. A stored position is that of a record that counted;
 * its headers give term and seq. */
#ifdef NO_COUNTEDPOSITION
#define STORED(l, k) true
#else
#define STORED(l, k) ((log[l].counts >> (k)) & 1)
#endif
inline readers(l) {
	ii = 0;
	do
	:: ii < log[l].size ->
		if
		:: STORED(l, ii) ->
			rterm = TERM(log[l].record[ii]); rseq = SEQ(log[l].record[ii]);
			seen = log[l].counts & ((2 << ii) - 1);
			jj = ii + 1;
			do
			:: jj < log[l].size ->
				rule(log[l].record[jj], rterm, rseq);
				if :: ok -> seen = seen | (1 << jj) :: else fi;
				jj++
			:: else -> break
			od;
			assert(seen == log[l].counts && rterm == log[l].term && rseq == log[l].seq) /* readers agree */
		:: else
		fi;
		ii++
	:: else -> break
	od
}

/* premise: what the record just landed says of log m was so: no other session
 * has changed m since. Its own session may have, later in its own order. */
inline premise(rec, l) {
	ii = 0; count = 0;
	do
	:: ii < log[l].size ->
		if
		:: ((log[l].counts >> ii) & 1) && KIND(log[l].record[ii]) == EVENT ->
			count++;
			assert(count <= VERSION(rec, l) || SESSION(log[l].record[ii]) == SESSION(rec)) /* events are decided on the present state of the other log */
		:: else
		fi;
		ii++
	:: else -> break
	od
}

/* land: the broker appends a record. What counts, counts for ever: the rule
 * looks at nothing that comes later. */
inline land(l, rec) {
	log[l].record[log[l].size] = rec;
	rule(rec, log[l].term, log[l].seq);
	printf("log %d @%d: ", l, log[l].size); tell(rec);
	if
	:: ok -> log[l].counts = log[l].counts | (1 << log[l].size); printf(": counts\n")
	:: else -> printf(": void\n")
	fi;
	log[l].size++;
	if
	:: ok && KIND(rec) == EVENT ->
		log[l].events++;
		assert(VERSION(rec, l) == log[l].events) /* versions that count are 1, 2, 3, ... */
#if LOGS == 2
		if
		:: VERSION(rec, 1-l) != NONE ->
			assert(VERSION(rec, 1-l) <= log[1-l].events); /* events are decided on what counts */
			premise(rec, 1-l)
		:: else
		fi
	:: ok && KIND(rec) == SEEN -> premise(rec, 1-l)
#endif
	:: else
	fi;
	readers(l)
}

/* stop: the session is over. What has not landed still may. */
inline stop(x) {
	printf("session %d stops\n", id);
	x.mode = STOPPED; x.confirmed = 0; x.appends = 0; x.refusing = 0;
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
		x.awaits[ll] = 0; x.rests[ll] = 0;
		x.at[ll].landed = 0; x.at[ll].known = 0; x.at[ll].read = 0; x.at[ll].held = 0;
		x.at[ll].term = 0; x.at[ll].seq = 0; x.at[ll].next = 0; x.at[ll].lastseq = 0; x.at[ll].version = 0; x.at[ll].acked = 0;
		ll++
	:: else -> break
	od
}

/* pop takes the oldest append, which has its answer, out of the queue. */
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
	assert((log[l].counts >> where) & 1 && log[l].record[where] == rec); /* nothing acknowledged is void */
	if
	:: KIND(rec) == EVENT -> x.at[l].acked = VERSION(rec, l)
	:: KIND(rec) == SEEN ->
		ii = 0; count = 0;
		do
		:: ii < where ->
			if
			:: ((log[l].counts >> ii) & 1) && KIND(log[l].record[ii]) == EVENT ->
				count++;
				assert(count <= VERSION(rec, l) || SESSION(log[l].record[ii]) == SESSION(rec)) /* no refusal is stale */
			:: else
			fi;
			ii++
		:: else -> break
		od;
		assert(count >= VERSION(rec, l)); /* no refusal is stale */
		x.confirmed++;
#ifdef NO_SEENBOTH
		x.confirmed = LOGS;
#endif
		if
		:: x.confirmed == LOGS ->
			x.confirmed = 0; x.refusing = 0; x.rests[0] = 0; x.rests[LOGS-1] = 0;
			printf("session %d refuses\n", id);
#if LOGS == 2
			assert(VERSION(rec, 1-l) <= log[1-l].events) /* no refusal is stale */
#endif
		:: else
		fi
	:: else
	fi
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

/* claimed: the claim's answer, offset o. Landed where expected it counts;
 * otherwise what stands between is read. */
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
	:: !mine -> stop(x)
	:: else ->
		x.at[l].next = off + 1; x.at[l].held = 1;
		ii = 0; count = 0;
		do
		:: ii < off -> if :: ((log[l].counts >> ii) & 1) && KIND(log[l].record[ii]) == EVENT -> count++ :: else fi; ii++
		:: else -> break
		od;
		x.at[l].version = count; x.at[l].acked = count;
		pop(x.at[l]);
#ifndef NO_CONTIGUITY
		agrees(x.at[l], l);
#endif
		printf("session %d: its claim of log %d counts\n", id, l);
		if :: x.at[0].held && x.at[LOGS-1].held -> x.mode = SERVING :: else fi
	fi
#endif
}

/* settle: an append's acknowledgement, with offset o. See takeAcks and verify in acknowledge.go. */
inline settle(x, l) {
	off = x.at[l].offset[0];
	own = x.at[l].queue[0];
	if
	:: off < x.at[l].next -> /* read past already */
		assert(x.at[l].known > 0); /* owner and readers agree */
		x.at[l].known--;
		pop(x.at[l])
#ifdef NO_CONTIGUITY
	:: else ->
#else
	:: off == x.at[l].next && x.at[l].known == 0 ->
#endif
		/* Landed where it must: nothing stands between. */
		x.at[l].next = off + 1; x.at[l].seq = SEQ(own);
		acknowledge(x, l, own, off);
		pop(x.at[l])
#ifndef NO_CONTIGUITY
	:: else ->
		isvoid = 0; jj = x.at[l].next;
		do
		:: jj <= off && !isvoid ->
			rule(log[l].record[jj], x.at[l].term, x.at[l].seq);
			if
#ifndef NO_BETWEEN
			:: ok && KIND(log[l].record[jj]) == CLAIM -> isvoid = 1 /* deposed */
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
		:: isvoid || x.at[l].known == 0 -> stop(x)
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

/* open: log l is read to its end, in any order and at any distance from the
 * others; the claims are sent when all logs are read. */
inline claim(x, id, l) {
	send(x.at[l], RECORD(CLAIM, id, x.at[l].term + 1, 0, 0, 0));
#ifdef NO_CLAIMFIRST
	x.at[l].term++; x.at[l].seq = 0; x.at[l].next++; x.at[l].held = 1;
	x.mode = SERVING
#endif
}
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
		claim(x, id, 0);
#if LOGS == 2
		claim(x, id, 1)
#endif
	:: else
	fi
#endif
}
#define MAYOPEN(id, l) ((me.mode == IDLE && id == started || me.mode == OPENING) && !me.at[l].read)

#ifdef NO_BOTHCLAIMS
#define SERVES(l) ((me.mode == OPENING || me.mode == SERVING) && me.at[l].held)
#else
#define SERVES(l) (me.mode == SERVING)
#endif
#define CLAIMING(e)   (e.queued > 0 && KIND(e.queue[0]) == CLAIM)
#define ROOM(e)       (e.queued < WINDOW + CLAIMING(e))
#define MAYAPPEND(l) (SERVES(l) && me.appends < APPENDS && ROOM(me.at[l]))

/* append: an event of log l, decided on its own state alone. */
inline append(x, id, l, other) {
	x.appends++; x.at[l].lastseq++; x.at[l].version++;
#if LOGS == 2
	if
	:: l == 0 -> send(x.at[l], RECORD(EVENT, id, x.at[l].term, x.at[l].lastseq, x.at[l].version, other))
	:: else -> send(x.at[l], RECORD(EVENT, id, x.at[l].term, x.at[l].lastseq, other, x.at[l].version))
	fi
#else
	send(x.at[l], RECORD(EVENT, id, x.at[l].term, x.at[l].lastseq, x.at[l].version, other))
#endif
}

/* A decision that looks at the other log waits until what it sees there is
 * acknowledged. */
#ifdef NO_ACKEDPREMISE
#define PREMISED(l) (me.mode == SERVING)
#else
#define PREMISED(l) (me.mode == SERVING && me.at[l].version == me.at[l].acked)
#endif

/* refuse: a refusal rests on the state of all logs, unacknowledged appends
 * included. It waits for a SEEN in each, sent later. (An event would do as
 * well; the reader rule makes no difference between the two.) */
inline refuse(x, id) {
	x.appends++; x.refusing = 1;
	x.rests[0] = x.at[0].version; x.awaits[0] = 1;
#if LOGS == 2
	x.rests[1] = x.at[1].version; x.awaits[1] = 1;
#ifdef NO_SEENBOTH
	x.awaits[0] = 0;
#endif
#endif
}
inline see(x, id, l) {
	x.awaits[l] = 0;
	x.at[l].lastseq++;
#if LOGS == 2
	send(x.at[l], RECORD(SEEN, id, x.at[l].term, x.at[l].lastseq, x.rests[0], x.rests[1]))
#else
	send(x.at[l], RECORD(SEEN, id, x.at[l].term, x.at[l].lastseq, x.rests[0], NONE))
#endif
}

/* resend: the answers were lost; what had landed is sent again and lands
 * again, and the later offset is reported. */
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
#define INFLIGHT (me.at[0].queued > 0 || me.at[LOGS-1].queued > 0)

#define STEPS(l) \
	:: d_step { MAYOPEN(id, l) -> open(me, id, l); skip } \
	:: d_step { MAYAPPEND(l) -> append(me, id, l, NONE); skip } \
	:: d_step { me.awaits[l] && ROOM(me.at[l]) -> see(me, id, l); skip } \
	:: d_step { ANSWERABLE(l) && KIND(me.at[l].queue[0]) == CLAIM -> claimed(me, l); skip } \
	:: d_step { ANSWERABLE(l) && KIND(me.at[l].queue[0]) != CLAIM -> settle(me, l); skip } \
	/* the broker: a record lands, in the order sent; a stopped session's too */ \
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
#ifdef NO_SEEN
	:: d_step { me.mode == SERVING && !INFLIGHT -> printf("session %d refuses at once\n", id); assert(me.at[0].version == log[0].events); skip } /* no refusal is stale */
#else
	:: d_step { me.mode == SERVING && me.appends < APPENDS && !me.refusing -> refuse(me, id); skip }
#endif
	/* An append's outcome is not known: the session ends. */
	:: d_step { (me.mode == OPENING || me.mode == SERVING) && INFLIGHT && errors < ERRORS -> errors++; stop(me); skip }
	od
}
