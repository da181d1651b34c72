package feed

import (
	"cmp"
	"net/http"
	"time"

	"tomato/httpapi"
)

// sse serves GET /v1/feed/sse. Every message is an event without a name, so that
// EventSource.onmessage gets it. Its id is the cursor, which a browser sends back
// as Last-Event-ID. When the server ends the stream, the browser reconnects by
// itself; a 401 makes it stop.
func (f *Feed) sse(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	actor, expires, err := f.Auth.Authenticate(cmp.Or(httpapi.TokenFromRequest(r), q.Get("token")))
	if err != nil {
		httpapi.WriteProblem(w, httpapi.FromError("feed", err))
		return
	}
	s, err := f.session(r, actor, expires, cmp.Or(r.Header.Get("Last-Event-ID"), q.Get("cursor")))
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
	if c.Flush() != nil {
		return
	}
	timeout := cmp.Or(f.WriteTimeout, 10*time.Second)
	var buf []byte
	end := f.pump(r.Context(), s, func(items []item) error {
		buf = buf[:0]
		for i := range items {
			buf = items[i].appendSSE(buf, s.text(&items[i]))
		}
		if err := c.SetWriteDeadline(time.Now().Add(timeout)); err != nil {
			return err
		}
		if _, err := w.Write(buf); err != nil {
			return err
		}
		return c.Flush()
	}, func() {})
	if end != nil {
		f.Hub.metrics.closes.WithLabelValues(end.label).Inc()
	}
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
