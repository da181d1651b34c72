package httpapi

import (
	"bytes"
	"encoding/json"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"
)

// validation checks the bytes of a body, which are valid JSON, against its schema and
// collects all faults, up to one more than an answer lists. It does not decode fields
// that the schema does not have, so a request with many faults costs little.
//
// huma checks strings, numbers and booleans. Objects and arrays are checked here, for
// four reasons: huma ignores the case of field names, it accepts null for an optional
// field, it reports wrong locations after a field name with a dot, and it does not
// know GeoJSON.
type validation struct {
	registry huma.Registry
	at       []byte // the present location: body.items[0]
	faults   []FieldError
	leaf     huma.ValidateResult
	path     *huma.PathBuffer
}

// maxLocationBytes is the length to which a location is cut. Locations contain names from
// the request, which may be long.
const maxLocationBytes = 256

func (v *validation) fault(message string) {
	if !v.full() {
		v.faults = append(v.faults, FieldError{location(v.at), message})
	}
}

// full reports whether there are so many faults that no more are collected.
func (v *validation) full() bool { return len(v.faults) > maxFaults }

func location(at []byte) string {
	if len(at) > maxLocationBytes {
		at = at[:maxLocationBytes]
	}
	return strings.ToValidUTF8(string(at), "")
}

// value checks one JSON value.
func (v *validation) value(s *huma.Schema, raw []byte) {
	for s.Ref != "" {
		s = v.registry.SchemaFromRef(s.Ref)
	}
	raw = skipSpace(raw)
	switch {
	case s.OneOf != nil || s.AnyOf != nil || s.AllOf != nil || s.Not != nil:
		v.huma(s, floats(readJSON(raw)))
	case s.Type == huma.TypeObject && raw[0] == '{':
		v.object(s, raw)
	case s.Type == huma.TypeObject:
		v.fault("expected object")
	case s.Type == huma.TypeArray && raw[0] == '[':
		v.array(s, raw)
	case s.Type == huma.TypeArray:
		v.fault("expected array")
	case s.Type == huma.TypeInteger:
		writeWhole(raw)
		v.scalar(s, scalarOf(raw))
	case s.Type != "": // without a type, any value is valid
		v.scalar(s, scalarOf(raw))
	}
}

// scalar checks x against a schema for strings, numbers or booleans. x is a string, a
// json.Number, a bool, or something else, which is a fault.
func (v *validation) scalar(s *huma.Schema, x any) {
	switch s.Type {
	case huma.TypeString:
		str, ok := x.(string)
		switch {
		case x == brokenText{}:
			v.fault("expected string without half of a surrogate pair")
		case !ok:
			v.fault("expected string")
		case s.Format == formatText || s.Format == formatLine:
			if message := textFault(s.Format, str); message != "" {
				v.fault(message)
			}
		case strings.IndexByte(str, 0) >= 0: // Postgres cannot store it
			v.fault("expected string without U+0000")
		default:
			v.huma(s, str)
		}
	case huma.TypeInteger, huma.TypeNumber:
		n, ok := x.(json.Number)
		if !ok {
			v.fault("expected " + s.Type)
			return
		}
		if s.Type == huma.TypeInteger {
			if _, err := strconv.ParseInt(string(n), 10, 64); err != nil {
				v.fault("expected integer")
				return
			}
		}
		f, err := n.Float64()
		if err != nil || math.IsInf(f, 0) || math.IsNaN(f) {
			v.fault("expected number in the range of float64")
			return
		}
		v.huma(s, f)
	case huma.TypeBoolean:
		if _, ok := x.(bool); !ok {
			v.fault("expected boolean")
		}
	}
}

func (v *validation) object(s *huma.Schema, raw []byte) {
	given := make(map[string][]byte, len(s.Properties)) // the last value, if a field is given twice
	var names []string                                  // the properties and the unknown fields
	more, _ := s.AdditionalProperties.(*huma.Schema)
	closed := s.AdditionalProperties == false
	fields := 0
	n := len(v.at)
	before := len(v.faults)
	members(raw, func(name string, value []byte) bool {
		fields++
		switch p := s.Properties[name]; {
		case p != nil:
			given[name] = value
		case more != nil:
			v.name(n, name)
			v.value(more, value)
		case closed && len(names) <= maxFaults:
			names = append(names, name)
		}
		return !v.full()
	})
	for name := range s.Properties {
		names = append(names, name)
	}
	slices.Sort(names) // so that the same request always gets the same answer
	for _, name := range slices.Compact(names) {
		v.name(n, name)
		p := s.Properties[name]
		switch value, there := given[name]; {
		case v.full():
		case p == nil:
			v.fault("unknown field")
		case there:
			v.value(p, value)
		case slices.Contains(s.Required, name):
			v.fault("required")
		}
	}
	v.at = v.at[:n]
	if s.MinProperties != nil && fields < *s.MinProperties {
		v.fault("expected " + strconv.Itoa(*s.MinProperties) + " or more fields")
	}
	if s.MaxProperties != nil && fields > *s.MaxProperties {
		v.fault("expected " + strconv.Itoa(*s.MaxProperties) + " or fewer fields")
	}
	if s.Format == formatPoint && len(v.faults) == before {
		v.point(given["coordinates"])
	}
}

// name sets the location to a field of the value whose location has n bytes.
func (v *validation) name(n int, name string) {
	v.at = append(append(v.at[:n], '.'), name[:min(len(name), maxLocationBytes)]...)
}

// index sets the location to an item of the value whose location has n bytes.
func (v *validation) index(n, i int) {
	v.at = append(strconv.AppendInt(append(v.at[:n], '['), int64(i), 10), ']')
}

// point checks the ranges of a Point that has no other faults.
func (v *validation) point(coordinates []byte) {
	n := len(v.at)
	i := 0
	elements(coordinates, func(raw []byte) bool {
		limit := [2]float64{180, 90}[i]
		if f, err := strconv.ParseFloat(string(raw), 64); err != nil || math.Abs(f) > limit {
			v.at = append(v.at[:n], ".coordinates"...)
			v.index(len(v.at), i)
			l := strconv.Itoa(int(limit))
			v.fault([2]string{"expected longitude", "expected latitude"}[i] + " from -" + l + " to " + l)
		}
		i++
		return i < 2
	})
	v.at = v.at[:n]
}

// length checks the number of items, and reports whether the items should be checked.
func (v *validation) length(s *huma.Schema, items int) bool {
	if s.MinItems != nil && items < *s.MinItems {
		v.fault("expected " + strconv.Itoa(*s.MinItems) + " or more items")
	}
	if s.MaxItems != nil && items > *s.MaxItems {
		v.fault("expected " + strconv.Itoa(*s.MaxItems) + " or fewer items")
		return false
	}
	return s.Items != nil
}

func (v *validation) array(s *huma.Schema, raw []byte) {
	items := 0
	elements(raw, func([]byte) bool { items++; return true })
	if s.UniqueItems && !unique(raw) {
		v.fault("expected no item twice")
	}
	if !v.length(s, items) {
		return
	}
	n, i := len(v.at), 0
	elements(raw, func(item []byte) bool {
		v.index(n, i)
		v.value(s.Items, item)
		i++
		return !v.full()
	})
	v.at = v.at[:n]
}

func unique(array []byte) bool {
	seen := map[string]bool{}
	twice := false
	elements(array, func(item []byte) bool {
		b, err := json.Marshal(readJSON(item))
		twice = err != nil || seen[string(b)]
		seen[string(b)] = true
		return !twice
	})
	return !twice
}

// huma lets huma check a string, number or boolean. It shortens messages about formats,
// because they may contain the value.
func (v *validation) huma(s *huma.Schema, x any) {
	if v.path == nil {
		v.path = huma.NewPathBuffer(nil, 0)
	}
	v.path.Reset()
	huma.Validate(v.registry, s, v.path, huma.ModeWriteToServer, x, &v.leaf)
	for _, e := range v.leaf.Errors {
		message := "not valid"
		if d, ok := e.(*huma.ErrorDetail); ok {
			message = d.Message
		}
		if head, _, quotes := strings.Cut(message, ": "); quotes && s.Format != "" && !strings.HasPrefix(message, "expected string to match") {
			message = head
		}
		v.fault(message)
	}
	v.leaf.Reset()
}

// floats returns x with all json.Numbers as float64, which huma needs.
func floats(x any) any {
	switch x := x.(type) {
	case json.Number:
		f, _ := x.Float64()
		return f
	case []any:
		for i := range x {
			x[i] = floats(x[i])
		}
	case map[string]any:
		for k := range x {
			x[k] = floats(x[k])
		}
	}
	return x
}

// readJSON reads one valid JSON value. Numbers stay json.Number, so that a number out of
// range is a fault of its field and not of the syntax.
func readJSON(b []byte) any {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var x any
	_ = d.Decode(&x)
	return x
}
