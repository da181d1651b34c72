package domain

import (
	"encoding/json"
	"strconv"
	"sync"
	"time"
	"unicode/utf8"
)

// A JSONReadable reads itself without reflection, because every consumer, policy, feed
// and shard reads every event. ReadJSON sets the receiver, which is zero before, and asks
// for the fields that WriteJSON writes, in the same order. Whatever it accepts must be
// what encoding/json makes of the same bytes: TestReadJSON compares the two.
type JSONReadable interface {
	ReadJSON(r *JSONReader)
}

// DecodeJSON sets *to, which must be zero, as json.Unmarshal does. It is fast if *T is a
// JSONReadable and data is as WriteJSON writes it. Data of any other form, from another
// program or an earlier version, is left to encoding/json, which alone says what it
// means.
func DecodeJSON[T any](data []byte, to *T) error {
	if v, ok := any(to).(JSONReadable); ok {
		if ReadJSON(data, v) {
			return nil
		}
		var zero T
		*to = zero // encoding/json would keep what ReadJSON has set
	}
	return json.Unmarshal(data, to)
}

// ReadJSON sets v, which must be zero, to data and reports whether data is as WriteJSON
// writes it. If it is not, v must not be used. v has no memory in common with data.
func ReadJSON(data []byte, v JSONReadable) bool {
	r := readers.Get().(*JSONReader)
	r.data, r.at, r.failed = data, 0, false
	v.ReadJSON(r)
	ok := !r.failed && r.at == len(data)
	r.data = nil
	readers.Put(r)
	return ok
}

var readers = sync.Pool{New: func() any { return new(JSONReader) }}

// JSONReader reads an object that JSON has written. Each method reads one field, and
// returns zero if it fails. Those that begin with Some also return zero if the field is
// not there, as omitempty and omitzero leave it out. Nothing but the written form is
// accepted: no white space, no other order, no unknown field. After the first difference
// everything fails.
type JSONReader struct {
	data   []byte
	at     int // what is next in data
	failed bool
	shared [256]string // texts that Shared has returned, by their hash
}

func (r *JSONReader) fail() { r.data, r.at, r.failed = nil, 0, true }

// take reads one byte of the syntax.
func (r *JSONReader) take(c byte) {
	if r.at >= len(r.data) || r.data[r.at] != c {
		r.fail()
		return
	}
	r.at++
}

// took reads the text if it is next, and reports whether it is.
func (r *JSONReader) took(text string) bool {
	end := r.at + len(text)
	if end > len(r.data) || string(r.data[r.at:end]) != text {
		return false
	}
	r.at = end
	return true
}

// Open begins an object, and Close ends it.
func (r *JSONReader) Open()  { r.take('{') }
func (r *JSONReader) Close() { r.take('}') }

// Name begins a field. Its value must be read next.
func (r *JSONReader) Name(name string) {
	if !r.Has(name) {
		r.fail()
	}
}

// Has begins a field if it is next, and reports whether it is.
func (r *JSONReader) Has(name string) bool {
	at := r.at
	if at < 1 || at >= len(r.data) {
		return false
	}
	if r.data[at-1] != '{' {
		if r.data[at] != ',' {
			return false
		}
		at++
	}
	first, last := at+1, at+1+len(name) // of the name
	if last+2 > len(r.data) || r.data[at] != '"' || string(r.data[first:last]) != name || r.data[last] != '"' || r.data[last+1] != ':' {
		return false
	}
	r.at = last + 2
	return true
}

// String reads a string.
func (r *JSONReader) String(name string) string {
	r.Name(name)
	return string(r.text())
}

// SomeString reads a string that may be left out.
func (r *JSONReader) SomeString(name string) string {
	if !r.Has(name) {
		return ""
	}
	return string(r.text())
}

// Shared reads a string that other fields and other objects have too, such as an id in
// Ctx or a currency. Objects that are read one after the other then share its memory.
func (r *JSONReader) Shared(name string) string {
	r.Name(name)
	return r.sharedText()
}

// SomeShared is Shared for a string that may be left out.
func (r *JSONReader) SomeShared(name string) string {
	if !r.Has(name) {
		return ""
	}
	return r.sharedText()
}

const maxSharedBytes = 64

func (r *JSONReader) sharedText() string {
	text := r.text()
	if len(text) == 0 || len(text) > maxSharedBytes {
		return string(text)
	}
	last := len(text) - 1
	slot := &r.shared[(uint(text[0])+31*uint(text[last/2])+61*uint(text[last])+97*uint(len(text)))%uint(len(r.shared))]
	if *slot != string(text) {
		*slot = string(text)
	}
	return *slot
}

// Int64 reads an integer.
func (r *JSONReader) Int64(name string) int64 {
	r.Name(name)
	return r.integer()
}

// SomeInt64 reads an integer that may be left out.
func (r *JSONReader) SomeInt64(name string) int64 {
	if !r.Has(name) {
		return 0
	}
	return r.integer()
}

// Int reads an integer.
func (r *JSONReader) Int(name string) int {
	r.Name(name)
	return r.smallInteger()
}

// SomeInt reads an integer that may be left out.
func (r *JSONReader) SomeInt(name string) int {
	if !r.Has(name) {
		return 0
	}
	return r.smallInteger()
}

func (r *JSONReader) smallInteger() int {
	n := r.integer()
	if int64(int(n)) != n { // where an int has 32 bits
		r.fail()
	}
	return int(n)
}

func (r *JSONReader) integer() int64 {
	first := r.at
	r.took("-")
	if !r.took("0") && r.digits() == 0 {
		r.fail()
		return 0
	}
	n, err := strconv.ParseInt(string(r.data[first:r.at]), 10, 64)
	if err != nil { // it is too large
		r.fail()
	}
	return n
}

// Bool reads a boolean.
func (r *JSONReader) Bool(name string) bool {
	r.Name(name)
	switch {
	case r.took("true"):
		return true
	case !r.took("false"):
		r.fail()
	}
	return false
}

// SomeBool reads a boolean that may be left out.
func (r *JSONReader) SomeBool(name string) bool {
	if !r.Has(name) {
		return false
	}
	if !r.took("true") {
		r.fail()
	}
	return !r.failed
}

// Time reads an instant.
func (r *JSONReader) Time(name string) time.Time {
	r.Name(name)
	return r.instant()
}

// SomeTime reads an instant that may be left out.
func (r *JSONReader) SomeTime(name string) (t time.Time) {
	if !r.Has(name) {
		return t
	}
	return r.instant()
}

func (r *JSONReader) instant() (t time.Time) {
	text, plain := r.literal()
	if !plain || t.UnmarshalText(text) != nil {
		r.fail()
		return time.Time{}
	}
	return t
}

// Point reads a point.
func (r *JSONReader) Point(name string) (p Point) {
	r.Name(name)
	if !r.took(`{"type":"Point","coordinates":[`) {
		r.fail()
		return p
	}
	p.Lng = r.number()
	r.take(',')
	p.Lat = r.number()
	if !r.took(`]}`) || !p.Valid() {
		r.fail()
	}
	return p
}

// number reads a number in the syntax of JSON, which is narrower than that of strconv.
func (r *JSONReader) number() float64 {
	first := r.at
	r.took("-")
	if !r.took("0") && r.digits() == 0 {
		r.fail()
	}
	if r.took(".") && r.digits() == 0 {
		r.fail()
	}
	if r.took("e") || r.took("E") {
		if !r.took("-") {
			r.took("+")
		}
		if r.digits() == 0 {
			r.fail()
		}
	}
	if r.failed {
		return 0
	}
	f, err := strconv.ParseFloat(string(r.data[first:r.at]), 64)
	if err != nil { // it is too large
		r.fail()
	}
	return f
}

// digits reads digits and returns their number.
func (r *JSONReader) digits() int {
	first := r.at
	for r.at < len(r.data) && '0' <= r.data[r.at] && r.data[r.at] <= '9' {
		r.at++
	}
	return r.at - first
}

// Strings reads a list of strings, as those that Shared reads.
func (r *JSONReader) Strings(name string) []string {
	r.Name(name)
	return readList(r, func(s *string) { *s = r.sharedText() })
}

// ReadJSONList reads a list of JSONReadables.
func ReadJSONList[T any, P interface {
	*T
	JSONReadable
}](r *JSONReader, name string) []T {
	r.Name(name)
	return readList(r, func(v *T) { P(v).ReadJSON(r) })
}

// SomeJSONList is ReadJSONList for a list that may be left out.
func SomeJSONList[T any, P interface {
	*T
	JSONReadable
}](r *JSONReader, name string) []T {
	if !r.Has(name) {
		return nil
	}
	return readList(r, func(v *T) { P(v).ReadJSON(r) })
}

// readList reads a list: null is nil, as in encoding/json.
func readList[T any](r *JSONReader, read func(*T)) []T {
	if r.took("null") {
		return nil
	}
	r.take('[')
	if r.took("]") {
		return []T{}
	}
	list := make([]T, 0, 4) // most lists are short
	for !r.failed {
		var zero T
		list = append(list, zero)
		read(&list[len(list)-1])
		if r.took("]") {
			return list
		}
		r.take(',')
	}
	return nil
}

// text reads a string and returns its bytes, which are valid until the next one is read.
func (r *JSONReader) text() []byte {
	before := r.at
	text, plain := r.literal()
	if plain || r.failed {
		return text
	}
	var s string
	if json.Unmarshal(r.data[before:r.at], &s) != nil {
		r.fail()
	}
	return []byte(s)
}

// literal reads a string and returns what is between its quotes. plain reports whether
// these are the bytes of the string; otherwise they have escapes, or are not as JSON
// wants them.
func (r *JSONReader) literal() (text []byte, plain bool) {
	if !r.took(`"`) {
		r.fail()
		return nil, false
	}
	data, first := r.data, r.at
	var all byte
	plain = true
	for i := first; i < len(data); i++ {
		c := data[i]
		all |= c
		if !special[c] {
			continue
		}
		switch c {
		case '"':
			r.at = i + 1
			text = data[first:i]
			return text, plain && (all < utf8.RuneSelf || utf8.Valid(text))
		case '\\':
			i++
		}
		plain = false
	}
	r.fail()
	return nil, false
}

// special are the bytes that end a string or may not be in it as they are.
var special = func() (s [256]bool) {
	for c := range ' ' {
		s[c] = true
	}
	s['"'], s['\\'] = true, true
	return s
}()

// ReadJSON reads what WriteJSON writes.
func (c *Ctx) ReadJSON(r *JSONReader) {
	r.Open()
	c.CustomerID = r.SomeShared("customerId")
	c.RestaurantID = r.SomeShared("restaurantId")
	c.RiderID = r.SomeShared("riderId")
	c.Status = r.SomeShared("status")
	c.PaymentStatus = r.SomeShared("paymentStatus")
	r.Close()
}
