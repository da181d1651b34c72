package httpapi

import (
	"bytes"
	"encoding/json"
	"math"
	"strconv"
	"unicode/utf16"
)

// The functions of this file cut pieces out of valid JSON without decoding the rest.

func skipSpace(b []byte) []byte {
	for len(b) > 0 && (b[0] == ' ' || b[0] == '\t' || b[0] == '\n' || b[0] == '\r') {
		b = b[1:]
	}
	return b
}

// cut returns the first value of b and the rest.
func cut(b []byte) (value, rest []byte) {
	b = skipSpace(b)
	depth := 0
	for i := 0; i < len(b); i++ {
		switch c := b[i]; {
		case c == '"':
			for i++; b[i] != '"'; i++ {
				if b[i] == '\\' {
					i++
				}
			}
		case c == '{' || c == '[':
			depth++
		case c == '}' || c == ']':
			depth--
		case depth == 0: // a number or a word
			for i+1 < len(b) && bytes.IndexByte([]byte(" \t\n\r,:]}"), b[i+1]) < 0 {
				i++
			}
		}
		if depth == 0 {
			return b[:i+1], b[i+1:]
		}
	}
	return b, nil
}

// elements calls f with each value of an array, until f returns false.
func elements(array []byte, f func(value []byte) bool) {
	b := skipSpace(array)[1:]
	for b = skipSpace(b); len(b) > 0 && b[0] != ']'; b = skipSpace(b) {
		var value []byte
		if value, b = cut(b); !f(value) {
			return
		}
		if b = skipSpace(b); len(b) > 0 && b[0] == ',' {
			b = b[1:]
		}
	}
}

// members calls f with each field of an object, until f returns false.
func members(object []byte, f func(name string, value []byte) bool) {
	b := skipSpace(object)[1:]
	for b = skipSpace(b); len(b) > 0 && b[0] != '}'; b = skipSpace(b) {
		var name, value []byte
		name, b = cut(b)
		value, b = cut(skipSpace(b)[1:]) // after the colon
		s, _ := scalarOf(name).(string)
		if !f(s, value) {
			return
		}
		if b = skipSpace(b); len(b) > 0 && b[0] == ',' {
			b = b[1:]
		}
	}
}

// brokenText stands for a string that is not Unicode text.
type brokenText struct{}

// scalarOf reads a string, a number or a bool. A number is returned as json.Number. A
// string with half of a surrogate pair is returned as brokenText, because decoding
// would change it to another text. Any other value is returned as nil.
func scalarOf(raw []byte) any {
	switch raw[0] {
	case '"':
		if bytes.IndexByte(raw, '\\') < 0 {
			return string(raw[1 : len(raw)-1])
		}
		var s string
		if halfSurrogate(raw) || json.Unmarshal(raw, &s) != nil {
			return brokenText{}
		}
		return s
	case 't', 'f':
		return raw[0] == 't'
	case 'n', '{', '[':
		return nil
	}
	return json.Number(bytes.TrimRight(raw, " "))
}

// halfSurrogate reports whether the escapes of a string have half of a surrogate pair.
func halfSurrogate(raw []byte) bool {
	unit := func(b []byte) rune { // the escape at the beginning of b, or 0
		if len(b) < 6 || b[0] != '\\' || b[1] != 'u' {
			return 0
		}
		n, _ := strconv.ParseUint(string(b[2:6]), 16, 16)
		return rune(n)
	}
	for i := 0; i < len(raw); i++ {
		if raw[i] != '\\' {
			continue
		}
		if first := unit(raw[i:]); utf16.IsSurrogate(first) {
			if utf16.DecodeRune(first, unit(raw[i+6:])) == '\uFFFD' {
				return true
			}
			i += 6
		}
		i++ // skip the escaped character
	}
	return false
}

// writeWhole rewrites a number such as 2.0 or 20e0 in place, as an integer with spaces
// after it. For JSON Schema these numbers are integers, but encoding/json does not read
// them into an integer.
func writeWhole(raw []byte) {
	if raw[0] == '"' || !bytes.ContainsAny(raw, ".eE") {
		return
	}
	f, err := strconv.ParseFloat(string(raw), 64)
	if err != nil || f != math.Trunc(f) || math.Abs(f) >= 1<<53 {
		return
	}
	if whole := strconv.FormatInt(int64(f), 10); len(whole) <= len(raw) {
		for n := copy(raw, whole); n < len(raw); n++ {
			raw[n] = ' '
		}
	}
}
