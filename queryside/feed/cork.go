package feed

import (
	"bufio"
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
	return w.conn, bufio.NewReadWriter(rw.Reader, bufio.NewWriter(w.conn)), nil
}

type corkConn struct {
	net.Conn
	timeout time.Duration // of a write

	mu     sync.Mutex // also keeps the reader's pong frames from landing inside another frame
	corked bool
	buf    []byte
}

func (c *corkConn) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.corked {
		c.buf = append(c.buf, b...)
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
	c.corked = true
}

func (c *corkConn) flush() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.corked = false
	if len(c.buf) == 0 {
		return nil
	}
	_, err := c.write(c.buf)
	if c.buf = c.buf[:0]; cap(c.buf) > maxTakeBytes {
		c.buf = nil // idle connections hold little
	}
	return err
}
