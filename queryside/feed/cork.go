package feed

import (
	"bufio"
	"net"
	"net/http"
	"sync"
	"time"
)

// corkWriter hands the websocket library a connection whose writes can be held
// back, so that many messages go out in one system call: the library flushes
// after each.
type corkWriter struct {
	http.ResponseWriter
	timeout time.Duration
	conn    *corkConn // once hijacked
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

	mu     sync.Mutex // also keeps frames of the reader's pongs in their place
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
