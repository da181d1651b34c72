package eventlog

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// ShardClaimed is the one record type of aggregate topics that concerns no aggregate:
// such a record has neither key nor version.
const ShardClaimed = "SHARD_CLAIMED"

// PositionErased is the type of a tombstone on rider-locations that takes the rider's
// position out of everything that keeps it. Other tombstones there mean nothing, because
// anybody may have written them.
const PositionErased = "RIDER_LOCATION_ERASED"

// shardSeen is a record that no version writes any more. It takes a seq, and nothing else
// follows from it.
const shardSeen = "SHARD_SEEN"

// Event is one record in CloudEvents 1.0 Kafka binary mode: attributes in
// headers, data in the value (github.com/cloudevents/spec, kafka-protocol-binding).
// On aggregate topics it has a version, a term and a seq; on others these are 0.
type Event struct {
	ID            string    // ce_id
	Source        string    // ce_source
	Type          string    // ce_type
	Schema        int       // version of the data of its type, in ce_dataschema; 0 and 1: the first version, without that header
	Time          time.Time // ce_time, UTC
	Subject       string    // ce_subject and record key: the aggregate id; "" for claims
	Version       int64     // of the aggregate, after this event; 0 for claims
	Term          int64     // of the writer's claim on this partition
	Seq           int64     // within the term on this partition; 0 for claims
	CausationID   string    // ce_causationid, where known
	CorrelationID string    // ce_correlationid, where known
	Traceparent   string    // W3C trace context, where known
	Actor         string    // ce_actor, "<role>:<sub>": who made the event; "" for the system
	Idempotency   string    // "<scope>.<body>.<status>" of the command, if it had an idempotency key
	Data          []byte    // compact JSON

	// Fault is set by ParseRecord if an attribute of the record cannot be read, and says
	// which one. On an aggregate topic, Rule.Take decides what is done with such a
	// record. On other topics, the reader decides.
	Fault error

	// ParseRecord sets these: where the record is in the log.
	Topic     string
	Partition int32
	Offset    int64
	Timestamp time.Time // the record's own
	Record    *kgo.Record
}

// Header names. version, term and seq are plain decimal text.
const (
	hdrSpecVersion = "ce_specversion"
	HeaderID       = "ce_id"
	hdrSource      = "ce_source"
	HeaderType     = "ce_type"
	hdrTime        = "ce_time"
	hdrSubject     = "ce_subject"
	hdrSchema      = "ce_dataschema"
	hdrContentType = "content-type"
	hdrVersion     = "version"
	hdrTerm        = "term"
	hdrSeq         = "seq"
	hdrCausation   = "ce_causationid"
	hdrCorrelation = "ce_correlationid"
	hdrTraceparent = "traceparent"
	hdrActor       = "ce_actor"
	hdrIdempotency = "idempotency"
)

// Header values that all records share. They must not be changed.
var (
	specVersion = []byte("1.0")
	contentType = []byte("application/json")
)

// A RecordBuffer has the memory of one record. A caller that makes many records uses
// it again when the record before is no longer needed. The zero value is ready to
// use. It is not safe for concurrent use.
type RecordBuffer struct {
	Data    []byte // for the caller, who may write the event's data into it
	record  kgo.Record
	headers []kgo.RecordHeader
	values  []byte // the values of the headers, one after the other
}

// NewRecord returns e as a record for topic and partition. The record has the headers
// version, term and seq only if Version or Term is set, as for aggregate topics.
func (e *Event) NewRecord(topic string, partition int32) *kgo.Record {
	return e.RecordIn(&RecordBuffer{}, topic, partition)
}

// RecordIn returns the same record as NewRecord, in the memory of buffer. It overwrites
// the record that was made in buffer before, whose promise must have been called.
func (e *Event) RecordIn(buffer *RecordBuffer, topic string, partition int32) *kgo.Record {
	if buffer.headers == nil {
		buffer.headers = make([]kgo.RecordHeader, 0, 12) // most records have no more
	}
	h := buffer.headers[:0]
	const numbers = len(time.RFC3339Nano) + 3*20 // the time, and three integers at most
	b := slices.Grow(buffer.values[:0], numbers+len(e.ID)+len(e.Source)+len(e.Type)+len(e.Subject)+
		len(e.CausationID)+len(e.CorrelationID)+len(e.Traceparent)+len(e.Idempotency)+len(e.Actor))
	h = append(h, kgo.RecordHeader{Key: hdrSpecVersion, Value: specVersion})
	h, b = textHeader(h, b, HeaderID, e.ID)
	h, b = textHeader(h, b, hdrSource, e.Source)
	h, b = textHeader(h, b, HeaderType, e.Type)
	from := len(b)
	b = e.Time.UTC().AppendFormat(b, time.RFC3339Nano)
	h = append(h, kgo.RecordHeader{Key: hdrTime, Value: b[from:len(b):len(b)]})
	h, b = textHeader(h, b, hdrSubject, e.Subject)
	var key []byte
	if e.Subject != "" {
		key = h[len(h)-1].Value
	}
	h = append(h, kgo.RecordHeader{Key: hdrContentType, Value: contentType})
	if e.Schema > 1 {
		h, b = textHeader(h, b, hdrSchema, schemaURI(e.Type, e.Schema))
	}
	if e.Version > 0 {
		h, b = numberHeader(h, b, hdrVersion, e.Version)
	}
	if e.Term > 0 {
		h, b = numberHeader(h, b, hdrTerm, e.Term)
		h, b = numberHeader(h, b, hdrSeq, e.Seq)
	}
	h, b = textHeader(h, b, hdrCausation, e.CausationID)
	h, b = textHeader(h, b, hdrCorrelation, e.CorrelationID)
	h, b = textHeader(h, b, hdrTraceparent, e.Traceparent)
	h, b = textHeader(h, b, hdrIdempotency, e.Idempotency)
	h, b = textHeader(h, b, hdrActor, e.Actor)
	buffer.headers, buffer.values = h, b
	buffer.record = kgo.Record{Topic: topic, Partition: partition, Key: key, Headers: h, Value: e.Data, Timestamp: e.Time}
	return &buffer.record
}

// textHeader appends the value to b and a header with that value to h. It appends
// nothing if the value is empty.
func textHeader(h []kgo.RecordHeader, b []byte, key, value string) ([]kgo.RecordHeader, []byte) {
	if value == "" {
		return h, b
	}
	from := len(b)
	b = append(b, value...)
	return append(h, kgo.RecordHeader{Key: key, Value: b[from:len(b):len(b)]}), b
}

func numberHeader(h []kgo.RecordHeader, b []byte, key string, n int64) ([]kgo.RecordHeader, []byte) {
	from := len(b)
	b = strconv.AppendInt(b, n, 10)
	return append(h, kgo.RecordHeader{Key: key, Value: b[from:len(b):len(b)]}), b
}

// The largest attributes that are read from a record. Tomato's own events are far
// below these limits. Without them, a longer text in a record of another program
// would be copied into the events that follow from it.
const (
	MaxIDBytes   = 256 // bytes of ce_id and ce_source
	MaxTypeBytes = 256 // bytes of ce_type
	maxText      = 512 // bytes of the optional attributes; a longer one is left out
)

// ParseRecord reads a record as an event. The error, which is also in Event.Fault,
// says which attribute cannot be read. The event has all other attributes. ParseRecord
// does not look into the data.
func ParseRecord(r *kgo.Record) (Event, error) {
	var e Event
	e.Parse(r)
	return e, e.Fault
}

// Parse sets e to the record as ParseRecord reads it. If a header occurs several times,
// the last one is read. term and seq have the values that the reader in README.md
// reads, whatever else is wrong with the record.
func (e *Event) Parse(r *kgo.Record) {
	*e = Event{Topic: r.Topic, Partition: r.Partition, Offset: r.Offset, Timestamp: r.Timestamp, Data: r.Value, Record: r}
	var id, subject, at, version, term, seq, schema []byte
	for i := range r.Headers {
		v := r.Headers[i].Value
		switch r.Headers[i].Key {
		case HeaderID:
			id = v
		case hdrSource:
			e.Source = intern(v[:min(len(v), MaxIDBytes)])
		case HeaderType:
			e.Type = intern(v)
		case hdrTime:
			at = v
		case hdrSubject:
			subject = v
		case hdrSchema:
			schema = v
		case hdrVersion:
			version = v
		case hdrTerm:
			term = v
		case hdrSeq:
			seq = v
		case hdrCausation:
			e.CausationID = bounded(v)
		case hdrCorrelation:
			e.CorrelationID = bounded(v)
		case hdrTraceparent:
			e.Traceparent = bounded(v)
		case hdrIdempotency:
			e.Idempotency = bounded(v)
		case hdrActor:
			e.Actor = bounded(v)
		}
	}
	if schema != nil {
		e.Schema = schemaVersion(e.Type, string(schema))
	}
	var err error
	number := func(name string, text []byte) int64 {
		if text == nil {
			return 0
		}
		n, perr := strconv.ParseInt(string(text), 10, 64)
		if perr != nil {
			err = fmt.Errorf("its header %s is no number", name)
		}
		return n
	}
	e.Version, e.Term, e.Seq = number(hdrVersion, version), number(hdrTerm, term), number(hdrSeq, seq)
	if e.Type == ShardClaimed {
		e.Seq = 0 // whatever the header says: the seq of a term begins after its claim
	}
	switch {
	case at != nil:
		if perr := e.Time.UnmarshalText(at); perr != nil { // RFC 3339
			err = errors.New("its ce_time is no time")
		}
		e.Time = e.Time.UTC()
		if year := e.Time.Year(); year < 1 || year > 9999 { // such a time in UTC cannot be written as JSON
			e.Time, err = time.Time{}, errors.New("its ce_time is no time")
		}
	case e.Term != 0: // on other topics ce_time is optional, as in CloudEvents
		err = errors.New("it has no ce_time")
	}
	if len(id) > MaxIDBytes {
		id, err = nil, fmt.Errorf("its ce_id is longer than %d bytes", MaxIDBytes)
	}
	// The subject and the id share one allocation, because they are used together.
	var array [128]byte
	both := string(append(append(array[:0], subject...), id...))
	e.Subject, e.ID = both[:len(subject)], both[len(subject):]
	switch {
	case e.Type == "":
		err = fmt.Errorf("it has no header %s", HeaderType)
	case len(e.Type) > MaxTypeBytes:
		err = fmt.Errorf("its ce_type is longer than %d bytes", MaxTypeBytes)
	}
	if err != nil {
		e.Fault = fmt.Errorf("record %s/%d@%d is not a complete event: %w", r.Topic, r.Partition, r.Offset, err)
	}
}

// schemaURI returns the value of ce_dataschema, by which a record says that its data is
// of the given version, 2 or higher. CloudEvents asks for an absolute URI.
func schemaURI(eventType string, version int) string {
	return "tomato:/schemas/" + eventType + "/" + strconv.Itoa(version)
}

// UnknownSchema is the Schema of a record whose ce_dataschema is not one of its type. No
// build knows this version, so the event is treated like one of an unknown type.
const UnknownSchema = 1 << 30

// schemaVersion returns the version that a ce_dataschema names, or UnknownSchema.
func schemaVersion(eventType, uri string) int {
	_, number, _ := strings.Cut(uri, "tomato:/schemas/"+eventType+"/")
	n, err := strconv.Atoi(number)
	if err != nil || n < 2 || n >= UnknownSchema || schemaURI(eventType, n) != uri {
		return UnknownSchema
	}
	return n
}

// DataVersion returns the version of the data of the event's type: 1 or higher.
func (e *Event) DataVersion() int { return max(1, e.Schema) }

// bounded returns the value of an optional attribute, or "" if it is too long.
func bounded(v []byte) string {
	if len(v) > maxText {
		return ""
	}
	return string(v)
}

// LogText returns a text of a record in a form that a log line may show: short and in
// valid UTF-8. Other programs may have written anything to a topic.
func LogText(s string) string {
	if len(s) > 64 {
		s = s[:64] + "…"
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}

// interned has the texts that intern has seen last, by their hash. Millions of records
// have the same few types and sources.
var interned [256]atomic.Pointer[string]

// intern returns string(v). It does not allocate if it has seen v before.
func intern(v []byte) string {
	if len(v) == 0 || len(v) > 64 {
		return string(v)
	}
	last := len(v) - 1
	slot := &interned[(uint(v[0])+31*uint(v[last/2])+61*uint(v[last])+97*uint(len(v)))%uint(len(interned))]
	if p := slot.Load(); p != nil && *p == string(v) {
		return *p
	}
	s := string(v)
	slot.Store(&s)
	return s
}
