package feedclient

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/coder/websocket"
)

// DialOptions are the options of one connection. The zero value sends no token.
type DialOptions struct {
	Token           string       // "" sends no header Authorization
	Subprotocols    []string     // bearer.<token>, where no header can be set
	HTTPClient      *http.Client // nil: http.DefaultClient
	MaxMessageBytes int64        // 0: 4 MiB
}

// Conn is one connection to a feed. It does not reconnect. One goroutine may read while
// others send.
type Conn struct {
	// Cursor is where the feed began: the header Feed-Cursor. "": the server sent none.
	Cursor string

	// ConsistencyToken is what queries should wait for if their answers are to have
	// everything from before Cursor. "": the server sent none.
	ConsistencyToken string

	ws *websocket.Conn
}

// Dial opens a connection. url is that of the feed with its query, such as
// http://127.0.0.1:8080/v1/feed?room=ops. ctx bounds the handshake only. If the server
// answers with a refusal, the error is a *RefusedError. The caller must call Close.
func Dial(ctx context.Context, url string, o *DialOptions) (*Conn, error) {
	if o == nil {
		o = &DialOptions{}
	}
	header := http.Header{}
	if o.Token != "" {
		header.Set("Authorization", "Bearer "+o.Token)
	}
	ws, resp, err := websocket.Dial(ctx, url, &websocket.DialOptions{HTTPClient: o.HTTPClient, HTTPHeader: header, Subprotocols: o.Subprotocols})
	switch {
	case err == nil:
	case resp != nil && resp.StatusCode != http.StatusSwitchingProtocols:
		return nil, newRefusedError(resp)
	default:
		return nil, fmt.Errorf("feedclient: cannot connect: %w", err)
	}
	ws.SetReadLimit(cmp.Or(o.MaxMessageBytes, 4<<20))
	return &Conn{Cursor: resp.Header.Get("Feed-Cursor"), ConsistencyToken: resp.Header.Get("Consistency-Token"), ws: ws}, nil
}

// RefusedError is a refused handshake.
type RefusedError struct {
	Status     int           // of HTTP
	Code       string        // of the problem, stable; "" if the answer was no problem
	Detail     string        // for people
	RetryAfter time.Duration // 0: not said
}

func newRefusedError(resp *http.Response) *RefusedError {
	e := &RefusedError{Status: resp.StatusCode}
	if s, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && s > 0 {
		e.RetryAfter = time.Duration(s) * time.Second
	}
	var problem struct{ Code, Detail string }
	// The websocket library has read the first kilobyte of the body.
	if b, err := io.ReadAll(resp.Body); err == nil && json.Unmarshal(b, &problem) == nil {
		e.Code, e.Detail = problem.Code, problem.Detail
	}
	return e
}

func (e *RefusedError) Error() string {
	text := fmt.Sprintf("feedclient: the server refused the feed: %d %s", e.Status, http.StatusText(e.Status))
	if e.Code != "" {
		text += ", " + e.Code
	}
	if e.Detail != "" {
		text += ": " + e.Detail
	}
	return text
}

// ClosedError is the end of a connection that the server has ended. /asyncapi.json
// describes the codes.
type ClosedError struct {
	Code   int
	Reason string
}

func (e *ClosedError) Error() string {
	return fmt.Sprintf("feedclient: the server ended the feed with code %d: %s", e.Code, e.Reason)
}

// errNoMessage is the error of a frame that is not a message of a feed.
var errNoMessage = errors.New("feedclient: what came is no message of a feed; is the URL that of Tomato?")

// Read reads the next message. If the server has ended the connection, the error is a
// *ClosedError. After an error, or the end of ctx, the connection is of no use.
func (c *Conn) Read(ctx context.Context) (Message, error) {
	text, err := c.ReadText(ctx)
	if err != nil {
		return Message{}, err
	}
	m := Message{Raw: text}
	if err := json.Unmarshal(text, &m); err != nil {
		return Message{}, fmt.Errorf("%w (%w)", errNoMessage, err)
	}
	return m, nil
}

// ReadText is Read without decoding the message.
func (c *Conn) ReadText(ctx context.Context) ([]byte, error) {
	_, text, err := c.ws.Read(ctx)
	var closed websocket.CloseError
	if errors.As(err, &closed) {
		return nil, &ClosedError{int(closed.Code), closed.Reason}
	}
	return text, err
}

// Send sends an operation as JSON. If ctx ends meanwhile, the connection is of no use
// afterwards.
func (c *Conn) Send(ctx context.Context, operation any) error {
	text, err := json.Marshal(operation)
	if err != nil {
		return fmt.Errorf("feedclient: the operation: %w", err)
	}
	return c.SendText(ctx, text)
}

// SendText is Send for text as it is, which need not be JSON.
func (c *Conn) SendText(ctx context.Context, text []byte) error {
	return c.ws.Write(ctx, websocket.MessageText, text)
}

// Subprotocol returns which one the server has chosen, or "".
func (c *Conn) Subprotocol() string { return c.ws.Subprotocol() }

// Close ends the connection at once, without a close frame.
func (c *Conn) Close() { _ = c.ws.CloseNow() }
