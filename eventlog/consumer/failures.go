package consumer

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"tomato/eventlog"
	"tomato/eventlog/pgerr"
)

// --- failures

// failed writes a failed attempt into it: how often, when it is due again, and
// on which topic its copy goes.
func (it *parkedItem) failed(cause error, now time.Time, delays []time.Duration) (stage string) {
	it.attempt++
	it.class, it.text = errorClass(cause), errorText(cause)
	it.lastFailed = now
	if it.firstFailed.IsZero() {
		it.firstFailed = now
	}
	switch {
	case errors.Is(cause, eventlog.ErrPoison) || it.attempt > len(delays):
		it.state, it.due = stateDead, time.Time{}
		return eventlog.DeadLetter
	case it.attempt == 1:
		it.state, it.due = stateRetry, now.Add(delays[0])
		return eventlog.Retry5s
	default:
		it.state, it.due = stateRetry, now.Add(delays[1])
		return eventlog.Retry30s
	}
}

type panicError struct{ value any }

func (p panicError) Error() string      { return fmt.Sprintf("handler panic: %v", p.value) }
func (p panicError) ErrorClass() string { return "panic" }
func (p panicError) Unwrap() error      { return eventlog.ErrPoison }

type decodeError struct{ err error }

func (d decodeError) Error() string      { return d.err.Error() }
func (d decodeError) ErrorClass() string { return "decode" }
func (d decodeError) Unwrap() error      { return eventlog.ErrPoison }

type goneError struct{}

func (goneError) Error() string {
	return "the record has expired from its topic, and its copies from the retry topics"
}
func (goneError) ErrorClass() string { return "gone" }
func (goneError) Unwrap() error      { return eventlog.ErrPoison }

// errorClass is the word by which operators select failures. An error can name
// its own by a method ErrorClass() string.
func errorClass(err error) string {
	var own interface{ ErrorClass() string }
	switch {
	case errors.As(err, &own):
		return own.ErrorClass()
	case pgerr.Code(err) != "":
		return "pg_" + pgerr.Code(err)
	case errors.Is(err, eventlog.ErrPoison):
		return "poison"
	case errors.Is(err, context.DeadlineExceeded):
		return "timeout"
	}
	return "transient"
}

func errorText(err error) string {
	s := plainText(err.Error())
	if len(s) > maxErrorText {
		s = s[:maxErrorText]
		for !utf8.ValidString(s) {
			s = s[:len(s)-1]
		}
	}
	return s
}

// plainText makes s fit for a text column, which takes neither NUL nor broken UTF-8.
func plainText(s string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "")
}

// ownWork classifies an error of the runtime's own database work: what did not
// come from the server as an answer is the server's absence. errStale is an
// answer: taken for an absence, a commit whose own answer was lost would be
// repeated for ever, for its rows are changed already.
func ownWork(err error) error {
	if err == nil || errors.Is(err, ErrFenced) || errors.Is(err, errStale) || errors.Is(err, eventlog.ErrUnavailable) ||
		pgerr.Code(err) != "" && !pgerr.Unavailable(err) && !pgerr.Conflict(err) {
		return err
	}
	return eventlog.UnavailableFrom("postgres", err)
}
