package domaintest

import (
	"encoding/json"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"tomato/domain"
)

// T0 is the time of the first event of every history, and of every decision.
var T0 = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// Aggregate is the aggregate under test, as the harness needs it.
type Aggregate[S any, E domain.Event] struct {
	Evolve func(S, E, time.Time) S
	Decide func(*S, domain.Command, time.Time) (E, error)
	// Authorize is called before Decide. If it is nil, everybody may do everything.
	Authorize func(*S, domain.Command, domain.Actor) error
	// Show returns the state in the words that the tables of Transitions use.
	Show func(*S) string
	// OrderStatus is the currentStatus that invalid_transition must name. If
	// nil, it is empty.
	OrderStatus func(*S, domain.Command) string
}

// Given returns the state that the events of the history make, one second apart.
func (a Aggregate[S, E]) Given(history []E) S {
	var s S
	for i, e := range history {
		s = a.Evolve(s, e, T0.Add(time.Duration(i)*time.Second))
	}
	return s
}

// Then returns the history with further events. The history is not changed.
func (a Aggregate[S, E]) Then(history []E, events ...E) []E {
	return slices.Concat(history, events)
}

// State is a state of the aggregate in which transitions are tested.
type State[E domain.Event] struct {
	Name    string // as the lines of Transition.Then have it
	History []E    // the events that lead to it
	Shown   string // what Show says of it; "" is not checked
}

// Transition is the outcome of one command by one actor in every state.
type Transition struct {
	Name    string
	Actor   domain.Actor // for Authorize, if the aggregate has it
	Command domain.Command
	// Then has one line for one or more states: STATES | OUTCOME. States are
	// separated by semicolons, and a..b means all states from a to b. Every state
	// must be in exactly one line. The outcomes are:
	//
	//	EVENT → shown   the event, and the result of Show for the state after it
	//	=               the aggregate is already so: no event and no refusal
	//	—               the command cannot occur or is dropped: no event and no refusal
	//	— code          the command is dropped, with this refusal
	//	!               409 invalid_transition, with currentStatus
	//	404, 403        not_found, forbidden
	//	code            409 with this code
	Then string
}

// Transitions tests each transition in each state. If there is an event, it also tests
// that Evolve does not change its input, that the state after the event survives JSON,
// and that the same command decided again makes no event.
func (a Aggregate[S, E]) Transitions(t *testing.T, states []State[E], transitions []Transition) {
	t.Helper()
	names := make([]string, len(states))
	for i, s := range states {
		names[i] = s.Name
		if given := a.Given(s.History); s.Shown != "" && a.Show(&given) != s.Shown {
			t.Errorf("the history of %q leads to %q, want %q", s.Name, a.Show(&given), s.Shown)
		}
	}
	for _, row := range transitions {
		outcomes := Outcomes(t, row.Name, names, row.Then)
		for i, state := range states {
			t.Run(row.Name+"/"+state.Name, func(t *testing.T) {
				t.Parallel()
				got, want := a.outcome(t, state, row), outcomes[i]
				if got != want && (want != "—" || got != "=") && "— "+got != want {
					t.Errorf("given %s\nwhen %s\ngot  %s\nwant %s", state.Name, row.Name, got, want)
				}
			})
		}
	}
}

// Outcomes reads the lines of a Transition, and returns the outcome in each state.
func Outcomes(t *testing.T, name string, states []string, lines string) []string {
	t.Helper()
	outcomes := make([]string, len(states))
	index := func(state string) int {
		i := slices.Index(states, strings.TrimSpace(state))
		if i < 0 {
			t.Fatalf("%s: there is no state %q", name, state)
		}
		return i
	}
	for line := range strings.Lines(strings.TrimSpace(lines)) {
		which, outcome, ok := strings.Cut(line, "|")
		if outcome = strings.TrimSpace(outcome); !ok || outcome == "" {
			t.Fatalf("%s: %q is not STATES | OUTCOME", name, line)
		}
		for part := range strings.SplitSeq(which, ";") {
			first, last, ok := strings.Cut(part, "..")
			if !ok {
				last = first
			}
			from, to := index(first), index(last)
			if from > to {
				t.Fatalf("%s: %q runs backwards", name, part)
			}
			for i := from; i <= to; i++ {
				if outcomes[i] != "" {
					t.Fatalf("%s: %q stands in two lines", name, states[i])
				}
				outcomes[i] = outcome
			}
		}
	}
	if i := slices.Index(outcomes, ""); i >= 0 {
		t.Fatalf("%s: %q stands in no line", name, states[i])
	}
	return outcomes
}

// outcome returns the outcome of the command in the state, in the words of
// Transition.Then.
func (a Aggregate[S, E]) outcome(t *testing.T, state State[E], row Transition) string {
	t.Helper()
	s := a.Given(state.History)
	status := ""
	if a.OrderStatus != nil {
		status = a.OrderStatus(&s, row.Command)
	}
	if a.Authorize != nil {
		if err := a.Authorize(&s, row.Command, row.Actor); err != nil {
			return Outcome(t, nil, err, status)
		}
	}
	e, err := a.Decide(&s, row.Command, T0)
	out := Outcome(t, e, err, status)
	if any(e) == nil || err != nil {
		return out
	}
	after := a.Evolve(s, e, T0)
	if before := a.Given(state.History); !reflect.DeepEqual(s, before) {
		t.Errorf("Decide or Evolve changed its input:\n%#v\nwas\n%#v", s, before)
	}
	if again, err := a.Decide(&after, row.Command, T0); any(again) != nil || err != nil {
		t.Errorf("decided again: %#v, %v", again, err)
	}
	var back S
	if b, err := json.Marshal(after); err != nil {
		t.Error(err)
	} else if err := json.Unmarshal(b, &back); err != nil || !reflect.DeepEqual(back, after) {
		t.Errorf("through JSON (%v):\n%#v\nwant\n%#v", err, back, after)
	}
	return out + " → " + a.Show(&after)
}

// Outcome returns the result of Decide in the words of Transition.Then, without the state
// after the event. It fails if an invalid_transition does not name currentStatus.
func Outcome(t testing.TB, e domain.Event, err error, currentStatus string) string {
	t.Helper()
	var r *domain.Refusal
	switch {
	case err != nil && e != nil:
		t.Errorf("an event and an error: %#v, %v", e, err)
		return "error"
	case errors.As(err, &r):
		switch r.Code {
		case domain.InvalidTransition:
			if r.CurrentStatus != currentStatus {
				t.Errorf("invalid_transition names currentStatus %q, want %q", r.CurrentStatus, currentStatus)
			}
			return "!"
		case domain.NotFound:
			return "404"
		case domain.Forbidden:
			return "403"
		}
		return string(r.Code)
	case err != nil:
		t.Errorf("an error that is no refusal: %v", err)
		return "error"
	case e == nil:
		return "="
	}
	return e.EventType()
}

// Example is one decision with everything that the event carries.
type Example[E domain.Event] struct {
	Name    string
	Given   []E
	When    domain.Command
	Then    E           // the zero value, nil: no event
	Refused domain.Code // "": not refused
}

// Examples tests each example at T0.
func (a Aggregate[S, E]) Examples(t *testing.T, examples []Example[E]) {
	t.Helper()
	for _, x := range examples {
		t.Run(x.Name, func(t *testing.T) {
			t.Parallel()
			s := a.Given(x.Given)
			e, err := a.Decide(&s, x.When, T0)
			if domain.RefusedWith(err) != x.Refused || err != nil && x.Refused == "" {
				t.Fatalf("when %#v\ngot error %v, want %q", x.When, err, x.Refused)
			}
			if !reflect.DeepEqual(e, x.Then) {
				t.Errorf("when %#v\ngot\n%#v\nwant\n%#v", x.When, e, x.Then)
			}
		})
	}
	if e, err := a.Decide(new(S), nil, T0); err == nil {
		t.Errorf("no command is decided: %#v", e)
	}
}
