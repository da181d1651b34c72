package feedclient

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// Run connects and calls handle for each message, one after the other, until it returns.
// See the package comment for when that is. The error is never nil: it is that of ctx if
// ctx has ended, and that of handle if handle has failed. Then the cursor is still that of
// the message before. Run can be called once.
func (c *Client) Run(ctx context.Context, handle func(context.Context, Message) error) error {
	if c.started.Swap(true) {
		return errors.New("feedclient: Run was called before; make another Client")
	}
	httpClient := c.o.HTTPClient
	if httpClient == nil {
		transport := http.DefaultTransport.(*http.Transport).Clone()
		defer transport.CloseIdleConnections() // of refused handshakes
		httpClient = &http.Client{Transport: transport}
	}
	s := &session{c: c, http: httpClient, handle: handle, waits: newWaits(c.o.MinWait, c.o.MaxWait)}
	for {
		err := s.connection(ctx)
		var failed *handlerError
		switch {
		case errors.As(err, &failed):
			return failed.err
		case ctx.Err() != nil:
			return ctx.Err()
		case len(s.named) > 0 && !s.connected && refusesRooms(err):
			s.byOp = true // at once: the server says for each room whether it is refused
			continue
		case !s.mayRetry(err):
			return err
		}
		wait := s.waits.NextBackOff() + advised(err)
		if c.o.Disconnected != nil {
			c.o.Disconnected(err, wait)
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-c.skip:
			timer.Stop()
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
	}
}

// handlerError is an error of the caller's handler.
type handlerError struct{ err error }

func (e *handlerError) Error() string { return e.err.Error() }

// session is what a call of Run keeps between connections. Only the goroutine of Run uses
// it.
type session struct {
	c      *Client
	http   *http.Client
	handle func(context.Context, Message) error
	waits  waits

	url          int      // index of the URL that is tried next
	began        bool     // there was a connection
	byOp         bool     // the server has refused a handshake that named rooms
	named        []string // the rooms of the last handshake
	connected    bool     // the last handshake succeeded
	unauthorized int      // attempts in a row that were refused with 401
}

// connection opens one connection and handles its messages until it ends.
func (s *session) connection(ctx context.Context) error {
	c := s.c
	cursor := c.Cursor()
	conn, err := s.dial(ctx, cursor)
	if err != nil {
		return err
	}
	defer func() {
		c.mu.Lock()
		c.conn = nil
		c.mu.Unlock()
		conn.Close()
	}()
	select {
	case <-c.skip: // of a Reconnect that came before this connection
	default:
	}
	if err := c.connected(ctx, conn, cursor != ""); err != nil {
		return err
	}
	if c.o.Connected != nil {
		c.o.Connected(cursor != "")
	}
	if cursor == "" {
		reason := ReasonBegin
		if s.began {
			reason = ReasonNoCursor
		}
		if err := s.pass(ctx, Message{Event: Reset, Reason: reason, Cursor: conn.Cursor, ConsistencyToken: conn.ConsistencyToken}); err != nil {
			return err
		}
	}
	s.began = true
	for {
		m, err := s.read(ctx, conn)
		if err != nil {
			return err
		}
		if m.OfFeed() {
			if err := c.noteAnswer(ctx, conn, &m); err != nil {
				return err
			}
		}
		if m.Event != Reset {
			s.waits.Reset()
		}
		if err := s.pass(ctx, m); err != nil {
			return err
		}
	}
}

// read reads the next message. The wait for it is bounded.
func (s *session) read(ctx context.Context, conn *Conn) (Message, error) {
	bounded, cancel := context.WithTimeout(ctx, s.c.o.IdleTimeout)
	defer cancel()
	m, err := conn.Read(bounded)
	if err != nil && ctx.Err() == nil && bounded.Err() != nil {
		err = fmt.Errorf("feedclient: nothing came for %s: %w", s.c.o.IdleTimeout, err)
	}
	return m, err
}

// pass lets the caller handle a message, and moves the cursor on.
func (s *session) pass(ctx context.Context, m Message) error {
	if err := s.handle(ctx, m); err != nil {
		return &handlerError{err}
	}
	if m.Cursor != "" || m.Event == Reset {
		s.c.mu.Lock()
		s.c.cursor = m.Cursor
		s.c.mu.Unlock()
	}
	return nil
}

// dial makes one attempt to connect.
func (s *session) dial(ctx context.Context, cursor string) (*Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, s.c.o.DialTimeout)
	defer cancel()
	s.connected = false
	token, err := s.c.o.Token(ctx)
	if err != nil {
		return nil, &tokenError{err}
	}
	s.named = s.c.nameRooms(cursor != "", s.byOp)
	query := url.Values{}
	if cursor != "" {
		query.Set("cursor", cursor)
	}
	if len(s.named) > 0 {
		query["room"] = s.named
	}
	base := s.c.o.URLs[s.url%len(s.c.o.URLs)]
	conn, err := Dial(ctx, strings.TrimSuffix(base+"/v1/feed?"+query.Encode(), "?"), &DialOptions{
		Token: token, HTTPClient: s.http, MaxMessageBytes: cmp.Or(s.c.o.MaxMessageBytes, 16<<20)})
	var refused *RefusedError
	switch {
	case err == nil:
		s.connected, s.byOp, s.unauthorized = true, false, 0
		return conn, nil
	case !errors.As(err, &refused):
		s.url++
	case refused.Status >= http.StatusInternalServerError:
		s.url++
	case refused.Status == http.StatusUnauthorized:
		s.unauthorized++
	}
	return nil, err
}
