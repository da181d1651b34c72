package httpapi

import (
	"errors"
	"net/http"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"
)

// ETag is the entity tag of a version: `"3"`.
func ETag(version int64) string {
	return string(append(strconv.AppendInt([]byte{'"'}, version, 10), '"'))
}

// What ParseIfMatch gives for tags that are no version.
const (
	// AnyVersion, with ok false, stands for `*`: any version will do, but
	// there must be one.
	AnyVersion int64 = -1
	// NoVersion, with ok true, stands for a well-formed tag that we never
	// gave or a weak one (RFC 9110: If-Match compares strongly). It equals no
	// version, so it ends in 412.
	NoVersion int64 = -2
)

// ParseIfMatch reads the header If-Match: `"3"`, or 3. ok says that there is a
// version to compare with. A broken header is a 422 *Problem.
func ParseIfMatch(header string) (version int64, ok bool, err error) {
	version, ok, err = parseIfMatch(header)
	if err != nil {
		return 0, false, Invalid(FieldError{"header.If-Match", err.Error()})
	}
	return version, ok, nil
}

var errIfMatch = errors.New(`expected one entity tag such as "3", or *`)

func parseIfMatch(header string) (int64, bool, error) {
	s := strings.TrimSpace(header)
	if s == "" {
		return 0, false, nil
	}
	if s == "*" {
		return AnyVersion, false, nil
	}
	tag, weak := strings.CutPrefix(s, "W/")
	quoted := len(tag) >= 2 && tag[0] == '"' && tag[len(tag)-1] == '"'
	if quoted {
		tag = tag[1 : len(tag)-1]
	}
	if weak && !quoted {
		return 0, false, errIfMatch
	}
	for i := range len(tag) { // etagc of RFC 9110
		if c := tag[i]; c != 0x21 && (c < 0x23 || c == 0x7f) {
			return 0, false, errIfMatch
		}
	}
	v, err := strconv.ParseInt(tag, 10, 64)
	plain := err == nil && v >= 0 && strconv.FormatInt(v, 10) == tag
	switch {
	case plain && !weak:
		return v, true, nil
	case quoted:
		return NoVersion, true, nil
	}
	return 0, false, errIfMatch
}

// ParseIdempotencyKey reads the header Idempotency-Key: k1 and "k1" are the
// same key of 1 to 255 visible ASCII characters. No header, no key. A broken
// one is a 422 *Problem.
func ParseIdempotencyKey(header string) (string, error) {
	k, err := parseIdempotencyKey(header)
	if err != nil {
		return "", Invalid(FieldError{"header.Idempotency-Key", err.Error()})
	}
	return k, nil
}

var errIdempotencyKey = errors.New("expected 1 to 255 visible characters")

func parseIdempotencyKey(header string) (string, error) {
	if header == "" {
		return "", nil
	}
	k := header
	if len(k) >= 2 && k[0] == '"' && k[len(k)-1] == '"' {
		k = k[1 : len(k)-1]
	}
	if len(k) == 0 || len(k) > 255 {
		return "", errIdempotencyKey
	}
	for i := range len(k) {
		if k[i] <= ' ' || k[i] > '~' {
			return "", errIdempotencyKey
		}
	}
	return k, nil
}

// IdempotencyKey is a parameter field: `header:"Idempotency-Key"`, unquoted and
// checked, empty when absent.
type IdempotencyKey string

// UnmarshalText reads the header's value.
func (k *IdempotencyKey) UnmarshalText(b []byte) error {
	s, err := parseIdempotencyKey(string(b))
	*k = IdempotencyKey(s)
	return asFault(err)
}

// Schema describes the header.
func (IdempotencyKey) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeString, Description: "Makes the command safe to repeat for 24 h; scoped to caller, operation and resource.",
		Extensions: map[string]any{"minLength": 1, "maxLength": 257, "pattern": "^[!-~]+$"}}
}

// IfMatch is a parameter field: `header:"If-Match"`.
type IfMatch struct {
	Version int64 // as ParseIfMatch gives it
	Set     bool  // there is a version to compare with
}

// UnmarshalText reads the header's value.
func (m *IfMatch) UnmarshalText(b []byte) (err error) {
	m.Version, m.Set, err = parseIfMatch(string(b))
	return asFault(err)
}

// Check is a 412 *Problem if there is a version to compare with and current is
// another. current is 0 for a resource that does not exist.
func (m IfMatch) Check(current int64) error {
	if m.Set && m.Version != current || m.Version == AnyVersion && current == 0 {
		return NewProblem(http.StatusPreconditionFailed, "precondition_failed", "The resource has another version than If-Match asks for.")
	}
	return nil
}

// Schema describes the header.
func (IfMatch) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeString, Description: `The version that the caller has seen, as in ETag: "3". Another one is 412.`}
}

// fault is the error of a parameter type of ours: its text may go to the caller.
type fault struct{ error }

func asFault(err error) error {
	if err == nil {
		return nil
	}
	return fault{err}
}
