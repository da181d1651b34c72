package eventlog

import "errors"

// A handler of events marks its error with one of these, which tells the consumer
// runtime the kind of the failure. An error without a mark is a failure of the handler
// itself, and the runtime tries the event again.

// ErrUnavailable marks the failure of something that the handler depends on, such as
// a shard without an owner, Postgres, or the gateway. It counts no failed attempt. The
// worker waits with backoff and tries again; meanwhile its lag grows. Wrap an error
// with Unavailable.
var ErrUnavailable = errors.New("a dependency is unavailable")

// ErrPoison marks an event that no retry can help. It becomes a dead letter at once.
// Wrap an error with Poison. A panic in a handler has the same effect.
var ErrPoison = errors.New("poison")

type marked struct{ mark, err error }

func (m marked) Error() string   { return m.err.Error() }
func (m marked) Unwrap() []error { return []error{m.mark, m.err} }

// Unavailable marks err with ErrUnavailable. nil stays nil.
func Unavailable(err error) error {
	if err == nil {
		return nil
	}
	return marked{ErrUnavailable, err}
}

// Poison marks err with ErrPoison. nil stays nil.
func Poison(err error) error {
	if err == nil {
		return nil
	}
	return marked{ErrPoison, err}
}

// UnavailableFrom marks err with ErrUnavailable and with the name of the dependency,
// such as "postgres", "gateway" or "shard 3". Failures of one dependency share a
// circuit breaker and a metric. nil stays nil.
func UnavailableFrom(dependency string, err error) error {
	if err == nil {
		return nil
	}
	return unavailable{dependency, err}
}

type unavailable struct {
	dependency string
	err        error
}

func (u unavailable) Error() string   { return u.dependency + ": " + u.err.Error() }
func (u unavailable) Unwrap() []error { return []error{ErrUnavailable, u.err} }

// DependencyOf returns the name of the dependency that UnavailableFrom has put into
// err, or "".
func DependencyOf(err error) string {
	var u unavailable
	if errors.As(err, &u) {
		return u.dependency
	}
	return ""
}
