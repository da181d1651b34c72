package domain

import (
	"bytes"
	"encoding/json"
	"strconv"
	"sync"
	"time"
	"unicode/utf8"
)

// A JSONWriter writes itself as encoding/json would, byte for byte, but without
// reflection, because it is written for every command. A field that is added to the
// struct must be added to WriteJSON: TestJSON compares the two. A JSONWriter must not
// be embedded in a struct, which would be written as the embedded part alone.
type JSONWriter interface {
	WriteJSON(j *JSON)
}

// JSON is an object that is being written. Each method appends one field. Those that
// begin with Some leave out what omitempty and omitzero leave out.
type JSON struct {
	b   []byte
	raw bool // <, > and & are not escaped
}

var jsons = sync.Pool{New: func() any { return &JSON{b: make([]byte, 0, 1<<10)} }}

const maxPooledBytes = 64 << 10

// EncodeJSON returns w as json.Marshal would.
func EncodeJSON(w JSONWriter) []byte {
	j := jsons.Get().(*JSON)
	j.b = j.b[:0]
	w.WriteJSON(j)
	out := bytes.Clone(j.b)
	if cap(j.b) <= maxPooledBytes {
		jsons.Put(j)
	}
	return out
}

// AppendEncoded appends w as json.Marshal would write it.
func AppendEncoded(b []byte, w JSONWriter) []byte {
	j := jsons.Get().(*JSON)
	own := j.b
	j.b = b
	w.WriteJSON(j)
	b, j.b = j.b, own
	jsons.Put(j)
	return b
}

// AppendJSON appends w as a json.Encoder without HTML escapes would write it.
func AppendJSON(b []byte, w JSONWriter) []byte {
	j := JSON{b: b, raw: true}
	w.WriteJSON(&j)
	return j.b
}

// Open begins an object, and Close ends it.
func (j *JSON) Open()  { j.b = append(j.b, '{') }
func (j *JSON) Close() { j.b = append(j.b, '}') }

// Name begins a field. Its value must be written next.
func (j *JSON) Name(name string) {
	b := j.b
	if c := b[len(b)-1]; c != '{' && c != '[' {
		b = append(b, ',')
	}
	b = append(b, '"')
	b = append(b, name...)
	j.b = append(b, '"', ':')
}

func (j *JSON) comma() {
	if c := j.b[len(j.b)-1]; c != '{' && c != '[' {
		j.b = append(j.b, ',')
	}
}

// String writes a string.
func (j *JSON) String(name, s string) {
	j.Name(name)
	j.text(s)
}

// SomeString writes a string that is not empty.
func (j *JSON) SomeString(name, s string) {
	if s != "" {
		j.String(name, s)
	}
}

// Int writes an integer.
func (j *JSON) Int(name string, n int64) {
	j.Name(name)
	j.b = strconv.AppendInt(j.b, n, 10)
}

// SomeInt writes an integer that is not zero.
func (j *JSON) SomeInt(name string, n int64) {
	if n != 0 {
		j.Int(name, n)
	}
}

// Bool writes a boolean.
func (j *JSON) Bool(name string, v bool) {
	j.Name(name)
	j.b = strconv.AppendBool(j.b, v)
}

// Time writes an instant as RFC 3339. The year must be 0 to 9999.
func (j *JSON) Time(name string, t time.Time) {
	j.Name(name)
	j.b = append(t.AppendFormat(append(j.b, '"'), time.RFC3339Nano), '"')
}

// SomeTime writes an instant that is not zero.
func (j *JSON) SomeTime(name string, t time.Time) {
	if !t.IsZero() {
		j.Time(name, t)
	}
}

// Strings writes a list of strings.
func (j *JSON) Strings(name string, list []string) {
	j.Name(name)
	if list == nil {
		j.b = append(j.b, "null"...)
		return
	}
	j.b = append(j.b, '[')
	for _, s := range list {
		j.comma()
		j.text(s)
	}
	j.b = append(j.b, ']')
}

// JSONList writes a list of JSONWriters.
func JSONList[W JSONWriter](j *JSON, name string, list []W) {
	j.Name(name)
	if list == nil {
		j.b = append(j.b, "null"...)
		return
	}
	j.b = append(j.b, '[')
	for _, w := range list {
		j.comma()
		w.WriteJSON(j)
	}
	j.b = append(j.b, ']')
}

// text writes a string. Most need no escapes and are copied; encoding/json writes the
// others.
func (j *JSON) text(s string) {
	for i := 0; i < len(s); {
		c := s[i]
		if plain[c] {
			i++
			continue
		}
		if c < utf8.RuneSelf {
			if c < ' ' || c == '"' || c == '\\' || !j.raw {
				j.escaped(s)
				return
			}
			i++
			continue
		}
		r, size := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError || r == '\u2028' || r == '\u2029' {
			j.escaped(s)
			return
		}
		i += size
	}
	b := append(j.b, '"')
	b = append(b, s...)
	j.b = append(b, '"')
}

// plain are the bytes that are never escaped.
var plain = func() (p [256]bool) {
	for c := ' '; c < utf8.RuneSelf; c++ {
		p[c] = c != '"' && c != '\\' && c != '<' && c != '>' && c != '&'
	}
	return p
}()

func (j *JSON) escaped(s string) {
	var buf bytes.Buffer
	e := json.NewEncoder(&buf)
	e.SetEscapeHTML(!j.raw)
	_ = e.Encode(s) // a string can always be written
	j.b = append(j.b, bytes.TrimSuffix(buf.Bytes(), []byte("\n"))...)
}

// WriteJSON writes the point as GeoJSON.
func (p Point) WriteJSON(j *JSON) { j.b = p.append(j.b) }

// WriteJSON writes what every event carries.
func (c Ctx) WriteJSON(j *JSON) {
	j.Open()
	j.SomeString("customerId", c.CustomerID)
	j.SomeString("restaurantId", c.RestaurantID)
	j.SomeString("riderId", c.RiderID)
	j.SomeString("status", c.Status)
	j.SomeString("paymentStatus", c.PaymentStatus)
	j.Close()
}
