package subjectkeys

import (
	"crypto/sha256"
	"fmt"
	"regexp"
	"strings"
	"time"

	"tomato/domain"
)

// The kinds of subjects.
const (
	kindCustomer = "customer"
	kindRider    = "rider"
	kindWebhooks = "webhooks"
)

// Subject is whoever a key belongs to. Two subjects are equal if they are the same. The
// zero value is no subject.
type Subject struct{ kind, id string }

// Customer returns the subject of a customer. The id must be a valid one.
func Customer(id string) Subject { return Subject{kindCustomer, id} }

// Rider returns the subject of a rider. The id must be a valid one.
func Rider(id string) Subject { return Subject{kindRider, id} }

// WebhooksOf returns the subject of the webhooks that came in the month of at, in UTC.
func WebhooksOf(at time.Time) Subject { return Subject{kindWebhooks, at.UTC().Format("2006-01")} }

var month = regexp.MustCompile(`^[0-9]{4}-(0[1-9]|1[0-2])$`)

// Webhooks returns the subject of the webhooks of a month. It fails if the month is not
// of the form 2026-11.
func Webhooks(yearAndMonth string) (Subject, error) {
	if !month.MatchString(yearAndMonth) {
		return Subject{}, fmt.Errorf("a month looks like 2026-11, not like %q", yearAndMonth)
	}
	return Subject{kindWebhooks, yearAndMonth}, nil
}

// ParseSubject reads what String has written.
func ParseSubject(s string) (Subject, error) {
	kind, id, _ := strings.Cut(s, "/")
	switch {
	case (kind == kindCustomer || kind == kindRider) && domain.ValidID(id):
		return Subject{kind, id}, nil
	case kind == kindWebhooks && month.MatchString(id):
		return Subject{kind, id}, nil
	}
	return Subject{}, fmt.Errorf("a subject is customer/<id>, rider/<id> or webhooks/<YYYY-MM>, not %q", s)
}

// String returns the subject as texts and records name it: customer/<id>, rider/<id> or
// webhooks/<YYYY-MM>.
func (s Subject) String() string { return s.kind + "/" + s.id }

// Kind returns customer, rider or webhooks.
func (s Subject) Kind() string { return s.kind }

// ID returns the id of the customer or rider, or the month of the webhooks.
func (s Subject) ID() string { return s.id }

// subjectHash stands for a subject in memory, because most subjects are longer.
type subjectHash [16]byte

func (s Subject) hash() subjectHash {
	sum := sha256.Sum256([]byte(s.String()))
	return subjectHash(sum[:16])
}
