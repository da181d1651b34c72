package domain

import (
	"fmt"
	"strings"
)

// Sealed is a personal text in encrypted form, as events, states and rows hold it:
// s1.<base64url>. Package eventlog/subjectkeys seals and opens it. The domain never sees
// the plain text. Equal plain texts of one person and one field are equal when they are
// sealed under the same key, so the domain can tell whether something has changed. The
// zero value means that there is no text.
type Sealed string

const (
	sealedPrefix   = "s1."
	minSealedChars = len(sealedPrefix) + (8+12+16)*4/3 // key id, nonce, and the tag of an empty text
	maxSealedChars = 16 << 10                          // more than the longest address and instructions need
)

// Valid reports whether s has the form of a sealed text. It does not say that the text
// can be opened.
func (s Sealed) Valid() bool {
	text, ok := strings.CutPrefix(string(s), sealedPrefix)
	if !ok || len(s) < minSealedChars || len(s) > maxSealedChars {
		return false
	}
	for i := range len(text) {
		if !base64url[text[i]] {
			return false
		}
	}
	return true
}

// base64url are the bytes of base64url.
var base64url = func() (is [256]bool) {
	for _, c := range "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-" {
		is[c] = true
	}
	return is
}()

// Check returns an error if s is neither empty nor Valid: then the field of an event is in
// plain text, as builds before the sealing have written it, and must not be taken for a
// text that nobody can read. The error does not quote the text.
func (s Sealed) Check(field string) error {
	if s == "" || s.Valid() {
		return nil
	}
	return fmt.Errorf("%s is no sealed text: a build from before personal fields were sealed has written the event, or another program", field)
}
