package httpapi

import (
	"encoding"
	"encoding/json"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"tomato/domain"
)

// plain reads a body in one pass into its struct and checks it. Nearly every body has
// no fault and can be read this way. plain gives up at a fault, and also at things that
// are valid but rare, such as an escape in a string or a number with an exponent. The
// body is then read by validation, which is slower and finds all faults.
//
// So plain may give up on a valid body. But it must not accept an invalid body, nor
// read a valid one differently from validation. TestPlain compares the two.
type plain struct {
	b  []byte // the body, in valid UTF-8
	at int    // the offset of the next byte
}

// A reader reads the next value into v. It reports false if it gives up.
type reader func(p *plain, v reflect.Value) bool

// readPlain reads the whole body into v. It reports false if it gives up; v is then its
// zero value.
func readPlain(body []byte, read reader, v reflect.Value) bool {
	p := plain{b: body}
	if read(&p, v) && p.peek() == 0 && p.at == len(p.b) {
		return true
	}
	v.SetZero()
	return false
}

// maxPlainDepth bounds the nesting of schemas. A schema that contains itself is read by
// validation.
const maxPlainDepth = 8

// plainReader returns the reader for a type and its schema. It returns nil if the schema
// has something that only validation can check.
func plainReader(registry huma.Registry, s *huma.Schema, t reflect.Type, depth int) reader {
	for s.Ref != "" {
		s = registry.SchemaFromRef(s.Ref)
	}
	if depth > maxPlainDepth || s.OneOf != nil || s.AnyOf != nil || s.AllOf != nil || s.Not != nil {
		return nil
	}
	pointer := reflect.PointerTo(t)
	switch {
	case t == reflect.TypeFor[domain.Point]():
		return func(p *plain, v reflect.Value) bool { return p.point(v.Addr().Interface().(*domain.Point)) }
	case t == reflect.TypeFor[Text](), t == reflect.TypeFor[Line]():
		return func(p *plain, v reflect.Value) bool { return p.trimmed(s.Format, v) }
	case t == reflect.TypeFor[ID]():
		return func(p *plain, v reflect.Value) bool { return p.id(v, domain.ValidID) }
	case t == reflect.TypeFor[OrderID]():
		return func(p *plain, v reflect.Value) bool { return p.id(v, validOrderID) }
	case t.Kind() == reflect.Pointer:
		read := plainReader(registry, s, t.Elem(), depth+1)
		if read == nil {
			return nil
		}
		return func(p *plain, v reflect.Value) bool {
			v.Set(reflect.New(t.Elem()))
			return read(p, v.Elem())
		}
	case t != timeType && pointer.Implements(reflect.TypeFor[json.Unmarshaler]()):
		return nil
	case s.Type == huma.TypeString && pointer.Implements(textUnmarshalerType):
		return func(p *plain, v reflect.Value) bool {
			b, ok := p.text()
			return ok && takes(registry, s, string(b)) && v.Addr().Interface().(encoding.TextUnmarshaler).UnmarshalText(b) == nil
		}
	case pointer.Implements(textUnmarshalerType):
		return nil
	case s.Type == huma.TypeString && t.Kind() == reflect.String:
		return func(p *plain, v reflect.Value) bool {
			b, ok := p.text()
			if !ok {
				return false
			}
			v.SetString(string(b))
			return takes(registry, s, v.String())
		}
	case s.Type == huma.TypeInteger && reflect.Zero(t).CanInt():
		return func(p *plain, v reflect.Value) bool {
			n, ok := p.integer()
			if !ok || v.OverflowInt(n) {
				return false
			}
			v.SetInt(n)
			return takesInt(registry, s, n)
		}
	case s.Type == huma.TypeBoolean && t.Kind() == reflect.Bool:
		return func(p *plain, v reflect.Value) bool {
			yes := p.literal("true")
			v.SetBool(yes)
			return yes || p.literal("false")
		}
	case s.Type == huma.TypeArray && t.Kind() == reflect.Slice:
		return plainArray(registry, s, t, depth)
	case s.Type == huma.TypeObject && t.Kind() == reflect.Struct:
		return plainObject(registry, s, t, depth)
	}
	return nil
}

func plainArray(registry huma.Registry, s *huma.Schema, t reflect.Type, depth int) reader {
	if s.Items == nil || s.UniqueItems {
		return nil
	}
	read := plainReader(registry, s.Items, t.Elem(), depth+1)
	if read == nil {
		return nil
	}
	return func(p *plain, v reflect.Value) bool {
		if !p.take('[') {
			return false
		}
		v.Set(reflect.MakeSlice(t, 0, 2))
		for n := 0; ; n++ {
			switch {
			case p.take(']'):
				return s.MinItems == nil || n >= *s.MinItems
			case s.MaxItems != nil && n >= *s.MaxItems, n > 0 && !p.take(','):
				return false
			}
			v.Grow(1)
			v.SetLen(n + 1)
			if !read(p, v.Index(n)) {
				return false
			}
		}
	}
}

func plainObject(registry huma.Registry, s *huma.Schema, t reflect.Type, depth int) reader {
	if more, ok := s.AdditionalProperties.(bool); !ok || more || s.MinProperties != nil || s.MaxProperties != nil || s.Format != "" {
		return nil
	}
	type field struct {
		name string
		at   int
		read reader
	}
	var fields []field
	var required uint64
	for i := range t.NumField() {
		f := t.Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "-" || !f.IsExported() && !f.Anonymous {
			continue
		}
		property := s.Properties[name]
		if f.Anonymous || property == nil || strings.Contains(options, "string") {
			return nil
		}
		read := plainReader(registry, property, f.Type, depth+1)
		if read == nil {
			return nil
		}
		if slices.Contains(s.Required, name) {
			required |= 1 << len(fields)
		}
		fields = append(fields, field{name, i, read})
	}
	if len(fields) != len(s.Properties) || len(fields) > 64 {
		return nil
	}
	return func(p *plain, v reflect.Value) bool {
		if !p.take('{') {
			return false
		}
		var seen uint64
		for {
			if p.take('}') {
				return seen&required == required
			}
			if seen != 0 && !p.take(',') {
				return false
			}
			name, ok := p.text()
			if !ok || !p.take(':') {
				return false
			}
			i := 0
			for i < len(fields) && fields[i].name != string(name) {
				i++
			}
			if i == len(fields) || seen&(1<<i) != 0 { // the field is unknown or given twice
				return false
			}
			seen |= 1 << i
			if !fields[i].read(p, v.Field(fields[i].at)) {
				return false
			}
		}
	}
}

// takes reports whether the schema accepts x, which is no object and no array.
func takes(registry huma.Registry, s *huma.Schema, x any) bool {
	v := validation{registry: registry}
	v.huma(s, x)
	return len(v.faults) == 0
}

func takesInt(registry huma.Registry, s *huma.Schema, n int64) bool {
	if s.ExclusiveMinimum != nil || s.ExclusiveMaximum != nil || s.MultipleOf != nil || s.Enum != nil {
		return takes(registry, s, float64(n))
	}
	return (s.Minimum == nil || float64(n) >= *s.Minimum) && (s.Maximum == nil || float64(n) <= *s.Maximum)
}

func (p *plain) trimmed(format string, v reflect.Value) bool {
	b, ok := p.text()
	if !ok {
		return false
	}
	s := string(b)
	v.SetString(strings.TrimSpace(s))
	return textFault(format, s) == ""
}

func (p *plain) id(v reflect.Value, valid func(string) bool) bool {
	b, ok := p.text()
	if !ok {
		return false
	}
	v.SetString(string(b))
	return valid(v.String())
}

// point reads a GeoJSON Point.
func (p *plain) point(to *domain.Point) bool {
	if !p.take('{') {
		return false
	}
	typed, placed := false, false
	for first := true; ; first = false {
		if p.take('}') {
			return typed && placed
		}
		if !first && !p.take(',') {
			return false
		}
		name, ok := p.text()
		switch {
		case !ok || !p.take(':'):
			return false
		case string(name) == "type" && !typed:
			kind, ok := p.text()
			if typed = ok && string(kind) == "Point"; !typed {
				return false
			}
		case string(name) == "coordinates" && !placed:
			if placed = p.coordinates(to); !placed {
				return false
			}
		default:
			return false
		}
	}
}

func (p *plain) coordinates(to *domain.Point) bool {
	ok := p.take('[') && p.number(&to.Lng) && p.take(',') && p.number(&to.Lat)
	if ok && p.take(',') {
		var altitude float64
		ok = p.number(&altitude)
	}
	return ok && p.take(']') && to.Valid()
}

// peek skips white space and returns the next byte, or 0 at the end.
func (p *plain) peek() byte {
	for ; p.at < len(p.b); p.at++ {
		switch c := p.b[p.at]; c {
		case ' ', '\t', '\n', '\r':
		default:
			return c
		}
	}
	return 0
}

// take skips white space and then c. It reports false if there is another byte.
func (p *plain) take(c byte) bool {
	if p.peek() != c {
		return false
	}
	p.at++
	return true
}

func (p *plain) literal(word string) bool {
	p.peek()
	if len(p.b)-p.at < len(word) || string(p.b[p.at:p.at+len(word)]) != word {
		return false
	}
	p.at += len(word)
	return true
}

// text reads a string without escapes.
func (p *plain) text() ([]byte, bool) {
	if !p.take('"') {
		return nil, false
	}
	for i := p.at; i < len(p.b); i++ {
		switch c := p.b[i]; {
		case c == '"':
			b := p.b[p.at:i]
			p.at = i + 1
			return b, true
		case c == '\\' || c < ' ':
			return nil, false
		}
	}
	return nil, false
}

// digits reads a number without an exponent: -?(0|[1-9][0-9]*)(\.[0-9]+)?
// whole reports whether the number has no fraction.
func (p *plain) digits() (b []byte, whole bool) {
	p.peek()
	from := p.at
	run := func() int {
		n := 0
		for p.at < len(p.b) && p.b[p.at] >= '0' && p.b[p.at] <= '9' {
			p.at++
			n++
		}
		return n
	}
	if p.at < len(p.b) && p.b[p.at] == '-' {
		p.at++
	}
	first := p.at
	n := run()
	if n == 0 || n > 1 && p.b[first] == '0' {
		return nil, false
	}
	if p.at == len(p.b) || p.b[p.at] != '.' {
		return p.b[from:p.at], true
	}
	p.at++
	if run() == 0 {
		return nil, false
	}
	return p.b[from:p.at], false
}

const maxPlainDigits = 18 // such a number fits into an int64

func (p *plain) integer() (n int64, ok bool) {
	b, whole := p.digits()
	if !whole || len(b) > maxPlainDigits {
		return 0, false
	}
	n, err := strconv.ParseInt(string(b), 10, 64)
	return n, err == nil && p.ended()
}

func (p *plain) number(to *float64) bool {
	b, _ := p.digits()
	f, err := strconv.ParseFloat(string(b), 64)
	*to = f
	return err == nil && p.ended()
}

// ended reports whether the number that was read ends here, without an exponent.
func (p *plain) ended() bool {
	return p.at == len(p.b) || p.b[p.at] != 'e' && p.b[p.at] != 'E'
}
