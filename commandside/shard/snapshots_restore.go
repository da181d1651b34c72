package shard

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/domain/restaurant"
	"tomato/domain/rider"
	"tomato/eventlog"
)

// This file owns the restoring of aggregates from the records of a loaded snapshot.

// restore makes aggregates from the last record of each key and returns the
// checkpoint. The checkpoint is nil if the snapshot cannot be used: because there is no
// checkpoint, or a record is of another version of the fold, or a record was written outside of
// a transaction, which no owner does. Then the aggregates stay empty, and the next
// snapshot removes from the topic what it does not overwrite. An error means that the
// snapshot looks whole but cannot be used; the aggregates must not be used either.
func (a *aggregates) restore(last map[string]*kgo.Record, now time.Time) (*checkpoint, error) {
	fits := last[checkpointKey] != nil
	for name, r := range last { // one record that does not fit is enough
		fold := foldOf(name)
		fits = fits && (fold == "" || headersOf(r).fold == fold && r.Attrs.IsTransactional())
	}
	if !fits {
		for name := range last {
			if key, ok := parseRecordKey(name); ok {
				a.removed = append(a.removed, key)
			}
		}
		return nil, nil
	}
	at := &checkpoint{}
	if err := json.Unmarshal(last[checkpointKey].Value, at); err != nil {
		return nil, fmt.Errorf("%w: its checkpoint is not readable: %w", errForeignSnapshot, err)
	}
	a.allocateOrders(len(last) / 2) // an order and its payment are two records
	for _, t := range at.Types {
		if !slices.Contains(readTypes, t) {
			return nil, fmt.Errorf("%w: its build reads events of type %s, and this one does not", errForeignSnapshot, eventlog.LogText(t))
		}
	}
	n := 0
	for name := range last {
		if _, ok := parseRecordKey(name); ok {
			n++
		}
	}
	if n < at.Kept {
		return nil, fmt.Errorf("%w: it has %d of %d aggregates", errForeignSnapshot, n, at.Kept)
	}
	for name, r := range last {
		key, ok := parseRecordKey(name)
		if !ok {
			continue
		}
		if err := a.restoreOne(key, r, headersOf(r), r.Offset > last[checkpointKey].Offset, now); err != nil {
			return nil, fmt.Errorf("%w: %s is not readable: %w", errForeignSnapshot, name, err)
		}
	}
	slices.SortFunc(a.keys.order, func(x, y keyAge) int { return cmp.Compare(x.at, y.at) })
	return at, nil
}

// restoreOne adds the state in one record. ahead says that the record was written after
// the checkpoint, so the logs after the checkpoint may have events that the state has.
func (a *aggregates) restoreOne(key recordKey, r *kgo.Record, h savedHeaders, ahead bool, now time.Time) (err error) {
	e := a.held[key.kind][key.id]
	if e == nil {
		e = a.begin(key.kind, key.id)
	}
	if ahead {
		e.ahead |= 1 << key.kind
	}
	a.noteSaved(key.kind, e, true)
	if h.unread != nil {
		mark := &unreadable{}
		if err := json.Unmarshal(h.unread, mark); err != nil {
			return fmt.Errorf("its mark: %w", err)
		}
		if mark.Build != a.build {
			return fmt.Errorf("build %s could not read the %s, and this build may be able to", eventlog.LogText(mark.Build), eventlog.LogText(mark.Type))
		}
		if mark.readable(key.kind) {
			return fmt.Errorf("this build can read the %s, and the build that wrote the mark could not", eventlog.LogText(mark.Type))
		}
		e.setMark(key.kind, mark)
	}
	switch key.kind {
	case riders:
		e.rider, err = readState[rider.State](r.Value)
	case restaurants:
		e.restaurant, err = readState[restaurant.State](r.Value)
	default:
		if e.encoded == nil {
			e.encoded = &encodedState{}
		}
		if value := bytes.Clone(r.Value); key.kind == orders { // a copy, because the record's value would keep its whole batch in memory
			e.encoded.order = value
		} else {
			e.encoded.payment = value
		}
	}
	if err != nil {
		return err
	}
	if h.due > 0 {
		a.due.push(time.UnixMilli(h.due), key.id)
	}
	if h.retire > 0 {
		a.closed.push(time.UnixMilli(h.retire), key.id)
	}
	for used := range strings.SplitSeq(h.keys, ",") {
		scope, u, ok := parseKeyUse(used)
		if !ok {
			continue
		}
		u.at, err = strconv.ParseInt(used[strings.LastIndexByte(used, '.')+1:], 10, 64)
		if err == nil && !u.expired(now) {
			a.keys.add(e, scope, u)
		}
	}
	return nil
}

// savedHeaders are the headers of a record.
type savedHeaders struct {
	fold        string // "" if the record has no such header
	due, retire int64  // 0 if there is none
	keys        string
	unread      []byte // the mark; nil if there is none
}

func headersOf(r *kgo.Record) savedHeaders {
	h := savedHeaders{}
	for i := range r.Headers {
		number := func(n *int64) {
			if v, err := strconv.ParseInt(string(r.Headers[i].Value), 10, 64); err == nil {
				*n = v
			}
		}
		switch r.Headers[i].Key {
		case hdrFold:
			h.fold = string(r.Headers[i].Value)
		case hdrDue:
			number(&h.due)
		case hdrRetire:
			number(&h.retire)
		case hdrKeys:
			h.keys = string(r.Headers[i].Value)
		case hdrUnread:
			h.unread = r.Headers[i].Value
		}
	}
	return h
}
