package eventlogtest

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"sync"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Tamper is a way in which Wire tampers with requests or answers.
type Tamper string

// The ways to tamper.
const (
	// OutOfOrder lets the broker store the request's batches, but the answer to the
	// client is OUT_OF_ORDER_SEQUENCE_NUMBER. A broker that has forgotten the
	// producer answers like that.
	OutOfOrder Tamper = "out of order"
	// LostAnswer lets the broker store the request's batches. The connection ends
	// before the answer arrives.
	LostAnswer Tamper = "lost answer"
	// Twice lets the broker store the request's batches twice. The first copy has no
	// producer id, the second one is the client's own request, and the client gets the
	// answer to the second one. The same happens if a client gets no answer and sends
	// the batch again under a new epoch.
	Twice Tamper = "twice"
	// Refused ends the connection instead of passing the request on, so nothing is stored.
	Refused Tamper = "refused"
	// GroupCut loses the client's requests to join the group, to stay in it and to
	// leave it, so the client has no connection to its group coordinator. A
	// connection that has carried such a request loses everything from then on.
	// Requests on other connections pass.
	GroupCut Tamper = "group cut"
)

// Wire is a network between a client and its brokers. It understands enough of Kafka's
// protocol to tamper with requests and answers. Each client whose requests are to be
// tampered with needs a Wire of its own, whose Dial goes into eventlog.Config.
// Transactional batches pass unchanged. Safe for concurrent use.
type Wire struct {
	dial func(ctx context.Context, network, addr string) (net.Conn, error)

	mu     sync.Mutex
	every  map[Tamper]int     // every nth request is tampered with; 0 means none
	seen   map[Tamper]int     // requests since Set
	done   map[Tamper]int     // requests that were tampered with
	cutOff map[*wireConn]bool // connections that lose everything until GroupCut ends
}

// NewWire returns a wire that connects with dial. If dial is nil, it connects over TCP.
func NewWire(dial func(ctx context.Context, network, addr string) (net.Conn, error)) *Wire {
	if dial == nil {
		dial = (&net.Dialer{}).DialContext
	}
	return &Wire{dial: dial, every: map[Tamper]int{}, seen: map[Tamper]int{}, done: map[Tamper]int{}, cutOff: map[*wireConn]bool{}}
}

// Set makes the wire tamper with every nth request from now on, or with none if every
// is 0.
func (w *Wire) Set(t Tamper, every int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.every[t], w.seen[t] = every, 0
	if t == GroupCut && every == 0 {
		for c := range w.cutOff { // these connections have lost requests, so they cannot be used any more
			c.Close()
		}
		clear(w.cutOff)
	}
}

// Done returns how many requests were tampered with in this way.
func (w *Wire) Done(t Tamper) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.done[t]
}

// due counts a request and reports whether it is to be tampered with.
func (w *Wire) due(t Tamper) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.every[t] == 0 {
		return false
	}
	w.seen[t]++
	if w.seen[t]%w.every[t] != 0 {
		return false
	}
	w.done[t]++
	return true
}

// Dial connects to a broker.
func (w *Wire) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	c, err := w.dial(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	return &wireConn{Conn: c, wire: w, asked: map[int32]asked{}}, nil
}

type wireConn struct {
	net.Conn
	wire *Wire

	out []byte // the part of a request that was written so far; used by Write only
	in  []byte // the part of an answer that was not read yet; used by Read only

	mu     sync.Mutex
	asked  map[int32]asked // produce requests by correlation id
	copies int32
}

// asked is a produce request whose answer is to be tampered with.
type asked struct {
	version    int16
	outOfOrder bool
	lost       bool
	copy       bool // the wire has sent this request itself
}

const (
	keyProduce    = 0
	keyJoinGroup  = 11
	keyHeartbeat  = 12
	keyLeaveGroup = 13
	keySyncGroup  = 14

	firstFlexibleProduce = 9
)

// Write implements net.Conn. It passes on whole requests, unchanged or tampered with.
func (c *wireConn) Write(b []byte) (int, error) {
	c.out = append(c.out, b...)
	for len(c.out) >= 4 {
		size := 4 + int(binary.BigEndian.Uint32(c.out))
		if len(c.out) < size {
			break
		}
		frame := append([]byte(nil), c.out[:size]...)
		c.out = append(c.out[:0], c.out[size:]...)
		frames, err := c.request(frame)
		if err != nil {
			return 0, err
		}
		for _, f := range frames {
			if _, err := c.Conn.Write(f); err != nil {
				return 0, err
			}
		}
	}
	return len(b), nil
}

// request returns the requests that are sent instead of this one.
func (c *wireConn) request(frame []byte) ([][]byte, error) {
	key, version := int16(binary.BigEndian.Uint16(frame[4:])), int16(binary.BigEndian.Uint16(frame[6:]))
	correlation := int32(binary.BigEndian.Uint32(frame[8:]))
	switch key {
	case keyJoinGroup, keyHeartbeat, keyLeaveGroup, keySyncGroup:
		if c.wire.due(GroupCut) {
			c.wire.mu.Lock()
			c.wire.cutOff[c] = true
			c.wire.mu.Unlock()
		}
	case keyProduce:
		headerEnd := 14 // the client id follows
		if n := int16(binary.BigEndian.Uint16(frame[12:])); n > 0 {
			headerEnd += int(n)
		}
		if version >= firstFlexibleProduce {
			headerEnd++ // no tags
		}
		req := kmsg.NewPtrProduceRequest()
		req.SetVersion(version)
		if err := req.ReadFrom(frame[headerEnd:]); err != nil {
			return nil, fmt.Errorf("a produce request of version %d: %w", version, err)
		}
		if req.TransactionID != nil {
			break
		}
		if c.wire.due(Refused) {
			c.Conn.Close()
			return nil, net.ErrClosed
		}
		a := asked{version: version, outOfOrder: c.wire.due(OutOfOrder)}
		a.lost = !a.outOfOrder && c.wire.due(LostAnswer)
		twice := c.wire.due(Twice)
		c.mu.Lock()
		defer c.mu.Unlock()
		if a.outOfOrder || a.lost {
			c.asked[correlation] = a
		}
		if twice {
			c.copies++
			c.asked[-c.copies] = asked{version: version, copy: true}
			return [][]byte{anonymous(frame[:headerEnd], req, -c.copies), frame}, nil
		}
	}
	c.wire.mu.Lock()
	defer c.wire.mu.Unlock()
	if c.wire.cutOff[c] {
		return nil, nil
	}
	return [][]byte{frame}, nil
}

// anonymous returns a copy of the request whose batches have no producer id, so that
// the broker does not recognize them as duplicates.
func anonymous(header []byte, req *kmsg.ProduceRequest, correlation int32) []byte {
	for i := range req.Topics {
		for j := range req.Topics[i].Partitions {
			p := &req.Topics[i].Partitions[j]
			b := append([]byte(nil), p.Records...)
			const crcAt, attributesAt, producerAt, producerLen = 17, 21, 43, 8 + 2 + 4 // id, epoch, sequence
			for k := range producerLen {
				b[producerAt+k] = 0xff
			}
			binary.BigEndian.PutUint32(b[crcAt:], crc32.Checksum(b[attributesAt:], crc32.MakeTable(crc32.Castagnoli)))
			p.Records = b
		}
	}
	frame := req.AppendTo(append([]byte(nil), header...))
	binary.BigEndian.PutUint32(frame, uint32(len(frame)-4))
	binary.BigEndian.PutUint32(frame[8:], uint32(correlation))
	return frame
}

// Read implements net.Conn. It reads whole answers and passes them on, unchanged or
// tampered with.
func (c *wireConn) Read(b []byte) (int, error) {
	for len(c.in) == 0 {
		frame := make([]byte, 4)
		if _, err := io.ReadFull(c.Conn, frame); err != nil {
			return 0, err
		}
		frame = append(frame, make([]byte, binary.BigEndian.Uint32(frame))...)
		if _, err := io.ReadFull(c.Conn, frame[4:]); err != nil {
			return 0, err
		}
		var err error
		if c.in, err = c.answer(frame); err != nil {
			return 0, err
		}
	}
	n := copy(b, c.in)
	c.in = c.in[n:]
	return n, nil
}

// answer returns what the client gets instead of this answer, which may be nothing.
func (c *wireConn) answer(frame []byte) ([]byte, error) {
	correlation := int32(binary.BigEndian.Uint32(frame[4:]))
	c.mu.Lock()
	a, ok := c.asked[correlation]
	delete(c.asked, correlation)
	c.mu.Unlock()
	c.wire.mu.Lock()
	cutOff := c.wire.cutOff[c]
	c.wire.mu.Unlock()
	switch {
	case cutOff || a.copy:
		return nil, nil
	case !ok:
		return frame, nil
	case a.lost:
		c.Conn.Close()
		return nil, io.EOF
	}
	headerEnd := 8
	if a.version >= firstFlexibleProduce {
		headerEnd++ // no tags
	}
	resp := kmsg.NewPtrProduceResponse()
	resp.SetVersion(a.version)
	if err := resp.ReadFrom(frame[headerEnd:]); err != nil {
		return nil, fmt.Errorf("a produce answer of version %d: %w", a.version, err)
	}
	for i := range resp.Topics {
		for j := range resp.Topics[i].Partitions {
			p := &resp.Topics[i].Partitions[j]
			p.ErrorCode, p.BaseOffset = kerr.OutOfOrderSequenceNumber.Code, -1
		}
	}
	out := resp.AppendTo(append([]byte(nil), frame[:headerEnd]...))
	binary.BigEndian.PutUint32(out, uint32(len(out)-4))
	return out, nil
}
