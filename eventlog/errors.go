package eventlog

import "errors"

// A handler of events says by one of these marks what kind of failure it met.
// Any other error is a failure of the handler's own, which may be tried again.

// ErrUnavailable marks a failure of something that the handler depends on: a
// shard without owner, Postgres, the gateway. It counts as no attempt: the worker
// waits with backoff, and its lag shows. Wrap with Unavailable.
var ErrUnavailable = errors.New("a dependency is unavailable")

// ErrPoison marks an event that no retry can help: it becomes a dead letter at
// once. Wrap with Poison. A panic in a handler is the same.
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

// UnavailableFrom is Unavailable with the name of the dependency: "postgres",
// "gateway", "shard 3". Failures of one name share a breaker and a metric. nil
// stays nil.
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

// DependencyOf returns the name that UnavailableFrom was given, or "".
func DependencyOf(err error) string {
	var u unavailable
	if errors.As(err, &u) {
		return u.dependency
	}
	return ""
}
