package feed

import (
	"bufio"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"tomato/domain/rooms"
)

// rawSocket opens a feed as a websocket and gives back the bare connection, which costs the
// test as little memory as possible.
func (s *server) rawSocket(t *testing.T, token string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(s.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	key := make([]byte, 16)
	_, _ = rand.Read(key)
	fmt.Fprintf(conn, "GET /v1/feed HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %s\r\n\r\n",
		token, base64.StdEncoding.EncodeToString(key))
	lines := bufio.NewReaderSize(conn, 16)
	res, err := http.ReadResponse(lines, nil)
	if err != nil || res.StatusCode != http.StatusSwitchingProtocols {
		t.Fatal(res, err)
	}
	return conn
}

// inUse returns the memory that is in use: heap objects and goroutine stacks.
func inUse() uint64 {
	for range 3 { // stacks shrink, and pools are emptied, with the collections after
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}

// readFrames reads so many frames of a server.
func readFrames(c io.Reader, n int) error {
	lines := bufio.NewReader(c)
	for range n {
		head := make([]byte, 4)
		if _, err := io.ReadFull(lines, head[:2]); err != nil {
			return err
		}
		size := int64(head[1])
		if size == 126 {
			if _, err := io.ReadFull(lines, head[2:]); err != nil {
				return err
			}
			size = int64(binary.BigEndian.Uint16(head[2:]))
		}
		if _, err := io.CopyN(io.Discard, lines, size); err != nil {
			return err
		}
	}
	return nil
}

// TestAnIdleConnectionCostsLittle: an idle websocket costs at most 30 KiB, after a burst of
// messages, too. TOMATO_FEED_LOAD=1 opens 2,000.
func TestAnIdleConnectionCostsLittle(t *testing.T) {
	most := uint64(30 << 10)
	if raceEnabled { // it takes memory of its own
		most *= 2
	}
	connections := 300
	if os.Getenv("TOMATO_FEED_LOAD") != "" {
		connections = 2_000
	}
	s := serve(t, func(f *Feed, _ *HubConfig) { f.PingEvery = time.Hour })
	tokens := make([]string, connections)
	for i := range tokens {
		tokens[i] = token(t, customer(fmt.Sprint("u", i)), time.Hour)
	}
	all := make([]net.Conn, 0, connections)
	before := inUse()
	for i := range tokens {
		c := s.rawSocket(t, tokens[i])
		t.Cleanup(func() { _ = c.Close() })
		all = append(all, c)
	}
	each := func() uint64 { return (inUse() - before) / uint64(connections) }
	idle := each()
	// The burst: 400 messages of 1 KiB to everybody, who read them all.
	const burst, size = 400, 1 << 10
	names := make([]string, connections)
	for i := range names {
		names[i] = rooms.User(fmt.Sprint("u", i))
	}
	payload := []byte(`"` + strings.Repeat("x", size) + `"`)
	read := make(chan error, connections)
	for _, c := range all {
		go func() { read <- readFrames(c, burst) }()
	}
	for o := range int64(burst) {
		s.Hub.Publish(orders0, o, time.Now(), []rooms.Message{{Event: "e", Rooms: names, Payload: payload}})
	}
	for range all {
		if err := <-read; err != nil {
			t.Fatal(err)
		}
	}
	s.Hub.mu.Lock()
	s.Hub.recent = newRecent(1) // the hub's, not the connections'
	s.Hub.mu.Unlock()
	after := each()
	t.Logf("%d connections: %d bytes each when idle, %d after a burst", connections, idle, after)
	if idle > most || after > most {
		t.Errorf("an idle connection costs %d bytes, and %d after a burst", idle, after)
	}
}
