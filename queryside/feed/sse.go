package feed

import (
	"cmp"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"time"

	"tomato/httpapi"
)

// sse serves GET /v1/feed/sse. Every message is an event without a name, so that
// EventSource.onmessage gets it. Its id is the cursor, which a browser sends back
// as Last-Event-ID. When the server ends the stream, the browser reconnects by
// itself, after the time that the last retry field says; a 401 makes it stop.
func (f *Feed) sse(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	token, err := f.Auth.Authenticate(cmp.Or(httpapi.TokenFromRequest(r), q.Get("token")))
	if err != nil {
		httpapi.WriteProblem(w, httpapi.FromError("feed", err))
		return
	}
	s, err := f.session(r, token, cmp.Or(r.Header.Get("Last-Event-ID"), q.Get("cursor")))
	if err != nil {
		httpapi.WriteProblem(w, httpapi.FromError("feed", err))
		return
	}
	defer f.Hub.disconnect(s.subscriber)
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no") // proxies: pass on at once
	s.setHeaders(h)
	w.WriteHeader(http.StatusOK)
	if r.Method == http.MethodHead {
		return
	}
	c := http.NewResponseController(w)
	timeout := cmp.Or(f.WriteTimeout, 10*time.Second)
	// Browsers wait so long if the stream breaks off. It differs, because many may break off together.
	if writeRetry(w, c, timeout, retryFirst+rand.N(retryFirst)) != nil {
		return
	}
	end := f.pump(r.Context(), s, func(items []item) error {
		buf := borrow()
		defer giveBack(buf)
		for i := range items {
			*buf = items[i].appendSSE(*buf, s.text(&items[i]))
		}
		if err := c.SetWriteDeadline(time.Now().Add(timeout)); err != nil {
			return err
		}
		if _, err := w.Write(*buf); err != nil {
			return err
		}
		return c.Flush()
	}, func() {})
	if end != nil {
		f.Hub.metrics.closes.WithLabelValues(end.label).Inc()
		if end.wait > 0 {
			_ = writeRetry(w, c, timeout, end.wait)
		}
	}
}

// retryFirst to twice this is how long a browser waits after a stream that broke off.
const retryFirst = 1500 * time.Millisecond

// writeRetry says how long the client waits before it reconnects.
func writeRetry(w io.Writer, c *http.ResponseController, timeout, wait time.Duration) error {
	if err := c.SetWriteDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(w, "retry: %d\n", wait.Milliseconds()); err != nil {
		return err
	}
	return c.Flush()
}

// appendSSE appends the message as a server-sent event. A message without a cursor
// has no id, so the client keeps the last one.
func (it *item) appendSSE(b, cursor []byte) []byte {
	if it.cursor {
		b = append(append(append(b, "id: "...), cursor...), '\n')
	}
	b = append(b, "data: "...)
	return append(it.appendJSON(b, cursor), "\n\n"...)
}
