package httpapi

import (
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"
)

// ETag returns the entity tag of a version, such as `"3"`.
func ETag(version int64) string {
	return string(append(strconv.AppendInt([]byte{'"'}, version, 10), '"'))
}

// IfMatch is the type of the parameter `header:"If-Match"`. The zero value means that
// there is no header. A header that cannot be read is a fault of the request.
type IfMatch struct {
	Set bool // there is a header
	Any bool // the header is *, which matches any version of a resource that exists

	// Versions are the versions that the header names by strong tags, each more than 0.
	// Weak tags are left out, because If-Match never matches them (RFC 9110, 13.1.1).
	// So are tags that ETag never returns. Versions may therefore be empty.
	Versions []int64
}

// Check returns a *Problem with status 412 if the header does not match a resource of
// the version current. A resource that does not exist has version 0.
func (m IfMatch) Check(current int64) error {
	if !m.Set || current > 0 && (m.Any || slices.Contains(m.Versions, current)) {
		return nil
	}
	return NewProblem(http.StatusPreconditionFailed, "precondition_failed", "The resource has another version than If-Match asks for.")
}

// Schema describes the header.
func (IfMatch) Schema(huma.Registry) *huma.Schema {
	const tag = `((W/)?"[^\u0000-\u0020"\u007f]*"|[0-9]+)`
	return &huma.Schema{Type: huma.TypeString, Description: `The versions that will do, as ETag gives them: "3", or "3", "4", or * for any. Another one is 412.`,
		Extensions: map[string]any{"pattern": `^(\*|(,[ \t]*)*` + tag + `([ \t]*(,[ \t]*)+` + tag + `)*([ \t]*,)*)$`}}
}

var errIfMatch = errors.New(`expected entity tags such as "3", separated by commas, or *`)

// UnmarshalText reads the header's value, which is * or a list of tags. A number without
// quotes, such as 3, is read as the tag "3".
func (m *IfMatch) UnmarshalText(b []byte) error {
	*m = IfMatch{}
	rest := strings.Trim(string(b), " \t")
	if rest == "*" {
		*m = IfMatch{Set: true, Any: true}
		return nil
	}
	for rest != "" {
		if after, empty := strings.CutPrefix(rest, ","); empty { // RFC 9110, 5.6.1.2
			rest = strings.TrimLeft(after, " \t")
			continue
		}
		tag, after, ok := cutTag(rest)
		if rest = strings.TrimLeft(after, " \t"); !ok || rest != "" && rest[0] != ',' {
			return asFault(errIfMatch)
		}
		m.Set = true
		if v, err := strconv.ParseInt(tag, 10, 64); err == nil && v > 0 && strconv.FormatInt(v, 10) == tag {
			m.Versions = append(m.Versions, v)
		}
	}
	if !m.Set {
		return asFault(errIfMatch)
	}
	return nil
}

// cutTag cuts the first entity tag off s. It returns the text between the tag's quotes,
// or "" if the tag is weak, and the rest of s. ok is false if s does not begin with a
// tag.
func cutTag(s string) (tag, rest string, ok bool) {
	opaque, weak := strings.CutPrefix(s, "W/")
	if !strings.HasPrefix(opaque, `"`) {
		n := 0
		for n < len(opaque) && opaque[n] >= '0' && opaque[n] <= '9' {
			n++
		}
		return opaque[:n], opaque[n:], n > 0 && !weak
	}
	tag, rest, ok = strings.Cut(opaque[1:], `"`)
	for i := range len(tag) {
		if c := tag[i]; c < 0x21 || c == 0x7f { // a tag may not contain this character
			return "", rest, false
		}
	}
	if weak {
		tag = ""
	}
	return tag, rest, ok
}

// ParseIdempotencyKey reads the header Idempotency-Key. A key has 1 to 255 visible ASCII
// characters and may be in quotes: k1 and "k1" are the same key. It returns "" if the
// header is empty, and a *Problem with status 422 if the header is not valid.
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

// IdempotencyKey is the type of the parameter `header:"Idempotency-Key"`. It is valid
// and without quotes, or empty if there is no header.
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
		Extensions: map[string]any{"pattern": `^([!#-~][!-~]{0,254}|"|"[!-~]{0,253}[!#-~]|"[!-~]{1,255}")?$`}} // with or without quotes
}

// UnknownToken returns the problem for a Consistency-Token that names positions which
// the logs do not have.
func UnknownToken() *Problem {
	return NewProblem(http.StatusUnprocessableEntity, "unknown_consistency_token", "The Consistency-Token is of another log, or names what this log does not hold. Repeat without it, and reload what you know.")
}

// fault is an error of a parameter type of this package. Its text may be shown to the
// caller.
type fault struct{ error }

func asFault(err error) error {
	if err == nil {
		return nil
	}
	return fault{err}
}
