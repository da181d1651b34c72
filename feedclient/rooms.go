package feedclient

import (
	"context"
	"errors"
	"net/http"
	"slices"
)

// maxNamedRooms is how many rooms the server takes in the query of a handshake.
const maxNamedRooms = 64

// room is a room that the client is to be in, or is about to leave.
type room struct {
	name  string
	state roomState
	named bool // in the query of the present connection
}

// A room that the server has told us to be in (roomJoined) is part of the cursor, and a
// connection that resumes is in it without being asked. It is named in the query all the
// same, because a cursor may turn out to be of no use: then the rooms are joined before
// feed:reset, and nothing is missed in between. A room that was never acknowledged
// (roomJoining) is joined by an operation, because the caller waits for feed:joined.
type roomState int

const (
	roomNew     roomState = iota // to be joined with the beginning of the feed
	roomJoining                  // asked for by an operation, without an answer yet
	roomJoined                   //
	roomLeaving                  // asked for, without an answer yet
)

// room returns the room of that name, or nil. c.mu is held, or c is not shared yet.
func (c *Client) room(name string) *room {
	if i := slices.IndexFunc(c.rooms, func(r *room) bool { return r.name == name }); i >= 0 {
		return c.rooms[i]
	}
	return nil
}

// nameRooms says which rooms the next handshake names. Without a cursor these are all
// rooms: feed:reset comes first then, and tells the caller to load everything. byOp means
// that the server has refused a handshake that named rooms, and so none is named.
func (c *Client) nameRooms(resuming, byOp bool) (names []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.rooms {
		r.named = !byOp && len(names) < maxNamedRooms && (r.state == roomJoined || r.state == roomNew || r.state == roomJoining && !resuming)
		if r.named {
			names = append(names, r.name)
		}
	}
	return names
}

// connected notes the new connection, and sends the operations for those rooms that the
// handshake did not settle.
func (c *Client) connected(ctx context.Context, conn *Conn, resuming bool) error {
	c.mu.Lock()
	c.conn = conn
	var ops []op
	for _, r := range c.rooms {
		switch {
		case r.state == roomLeaving:
			ops = append(ops, op{Op: "leave", Room: r.name})
		case r.named && !(resuming && r.state == roomJoining): // Join may have been called meanwhile
			r.state = roomJoined
		case r.state == roomJoined && resuming: // it is part of the cursor
		default:
			r.state = roomJoining
			ops = append(ops, op{Op: "join", Room: r.name})
		}
	}
	c.mu.Unlock()
	return sendAll(ctx, conn, ops)
}

// noteAnswer notes what a message of the feed itself says about rooms.
func (c *Client) noteAnswer(ctx context.Context, conn *Conn, m *Message) error {
	c.mu.Lock()
	r := c.room(m.Room)
	var ops []op
	switch {
	case m.Event == Reset:
		for _, r := range c.rooms { // the cursor may have been of no use for these, too
			if r.state == roomJoined && !r.named {
				r.state = roomJoining
				ops = append(ops, op{Op: "join", Room: r.name})
			}
		}
	case r == nil:
	case m.Event == Joined && r.state == roomJoining:
		r.state = roomJoined
	case m.Event == Left && r.state == roomLeaving,
		m.Event == Error && r.state != roomLeaving && m.Code != "unavailable" && m.Code != "too_many_requests":
		c.rooms = slices.DeleteFunc(c.rooms, func(x *room) bool { return x == r })
	}
	c.mu.Unlock()
	return sendAll(ctx, conn, ops)
}

func sendAll(ctx context.Context, conn *Conn, ops []op) error {
	for _, o := range ops {
		if err := send(ctx, conn, o); err != nil {
			return err
		}
	}
	return nil
}

// refusesRooms reports whether a handshake may have been refused because of a room that
// it named.
func refusesRooms(err error) bool {
	var refused *RefusedError
	return errors.As(err, &refused) &&
		(refused.Status == http.StatusForbidden || refused.Status == http.StatusNotFound || refused.Status == http.StatusUnprocessableEntity)
}
