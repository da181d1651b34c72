package feed

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

// corkWriter is what the websocket library upgrades. The library flushes after
// each message, so corkWriter hands it a connection whose writes can be held back
// until many messages go out in one system call. It also withholds the library's
// plain-text refusals, so that the caller can answer with a problem instead.
type corkWriter struct {
	http.ResponseWriter
	timeout time.Duration
	conn    *corkConn // once hijacked
	refused int       // the status with which the library refused the handshake; 0: none
}

// WriteHeader implements http.ResponseWriter.
func (w *corkWriter) WriteHeader(status int) {
	if status != http.StatusSwitchingProtocols {
		w.refused = status
		return
	}
	w.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (w *corkWriter) Write(b []byte) (int, error) {
	if w.refused != 0 {
		return len(b), nil
	}
	return w.ResponseWriter.Write(b)
}

// Hijack implements http.Hijacker.
func (w *corkWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	w.conn = &corkConn{Conn: conn, timeout: w.timeout}
	// What the server has read already is read first. Its own reader and writer are not
	// used any more: they are large, and the reader keeps the whole request in memory.
	n := rw.Reader.Buffered()
	ahead, _ := rw.Reader.Peek(n)
	reader := bufio.NewReaderSize(io.MultiReader(bytes.NewReader(bytes.Clone(ahead)), w.conn), max(n, socketReaderBytes))
	_, _ = reader.Peek(n) // the library takes over what is buffered only
	return w.conn, bufio.NewReadWriter(reader, bufio.NewWriterSize(w.conn, socketWriterBytes)), nil
}

// Sizes of a websocket's buffers. Operations are short. What is written is collected by
// corkConn, so the writer need not be large.
const (
	socketReaderBytes = 512
	socketWriterBytes = 128
)

// buffers are for messages on their way to a connection. A connection holds one only while
// it writes.
var buffers = sync.Pool{New: func() any { return new([]byte) }}

func borrow() *[]byte { return buffers.Get().(*[]byte) }

// giveBack returns a buffer to the pool, unless it has grown large.
func giveBack(b *[]byte) {
	if cap(*b) <= 2*maxTakeBytes {
		*b = (*b)[:0]
		buffers.Put(b)
	}
}

type corkConn struct {
	net.Conn
	timeout time.Duration // of a write

	mu     sync.Mutex // also keeps the reader's pong frames from landing inside another frame
	corked *[]byte    // what is held back; nil: writes go out at once
}

func (c *corkConn) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.corked != nil {
		*c.corked = append(*c.corked, b...)
		return len(b), nil
	}
	return c.write(b)
}

func (c *corkConn) write(b []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(c.timeout)); err != nil {
		return 0, err
	}
	return c.Conn.Write(b)
}

// cork holds writes back until flush.
func (c *corkConn) cork() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.corked = borrow()
}

func (c *corkConn) flush() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	buf := c.corked
	c.corked = nil
	defer giveBack(buf)
	if len(*buf) == 0 {
		return nil
	}
	_, err := c.write(*buf)
	return err
}
