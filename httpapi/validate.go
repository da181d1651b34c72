package httpapi

import (
	"bytes"
	"encoding/json"
	"io"
	"math"
	"slices"
	"sort"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"
)

// validation walks a body that was read into any (numbers as json.Number)
// beside its schema and collects every fault. The leaves are huma's; objects
// and arrays are walked here, because huma takes field names in any case, takes
// null for a field that may be absent, loses its place after a field name with
// a dot in it, and knows no GeoJSON.
type validation struct {
	registry huma.Registry
	at       []byte // the present location: body.items[0]
	faults   []FieldError
	leaf     huma.ValidateResult
	path     *huma.PathBuffer
}

// maxLocationBytes cuts locations: they hold names that the caller chose.
const maxLocationBytes = 256

func (v *validation) fault(message string) {
	v.faults = append(v.faults, FieldError{location(v.at), message})
}

func location(at []byte) string {
	if len(at) > maxLocationBytes {
		at = at[:maxLocationBytes]
	}
	return strings.ToValidUTF8(string(at), "")
}

func (v *validation) value(s *huma.Schema, x any) {
	for s.Ref != "" {
		s = v.registry.SchemaFromRef(s.Ref)
	}
	if s.OneOf != nil || s.AnyOf != nil || s.AllOf != nil || s.Not != nil {
		v.huma(s, floats(x))
		return
	}
	switch s.Type {
	case huma.TypeObject:
		m, ok := x.(map[string]any)
		if !ok {
			v.fault("expected object")
			return
		}
		v.object(s, m)
	case huma.TypeArray:
		a, ok := x.([]any)
		if !ok {
			v.fault("expected array")
			return
		}
		v.array(s, a)
	case huma.TypeString:
		str, ok := x.(string)
		switch {
		case !ok:
			v.fault("expected string")
		case s.Format == formatText:
			if !validText(str) {
				v.fault(textMessage)
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
	default: // any value
	}
}

func (v *validation) object(s *huma.Schema, m map[string]any) {
	n := len(v.at)
	names := make([]string, 0, len(s.Properties)+len(m))
	for name := range s.Properties {
		names = append(names, name)
	}
	for name := range m {
		if _, known := s.Properties[name]; !known {
			names = append(names, name)
		}
	}
	sort.Strings(names) // the same request gets the same answer
	before := len(v.faults)
	for _, name := range names {
		x, given := m[name]
		v.at = append(append(v.at[:n], '.'), name...)
		switch p := s.Properties[name]; {
		case p != nil && given:
			v.value(p, x)
		case p != nil:
			if slices.Contains(s.Required, name) {
				v.fault("required")
			}
		default:
			switch more := s.AdditionalProperties.(type) {
			case *huma.Schema:
				v.value(more, x)
			case bool:
				if !more {
					v.fault("unknown field")
				}
			}
		}
	}
	v.at = v.at[:n]
	if s.MinProperties != nil && len(m) < *s.MinProperties {
		v.fault("expected " + strconv.Itoa(*s.MinProperties) + " or more fields")
	}
	if s.MaxProperties != nil && len(m) > *s.MaxProperties {
		v.fault("expected " + strconv.Itoa(*s.MaxProperties) + " or fewer fields")
	}
	if s.Format == formatPoint && len(v.faults) == before {
		v.point(m)
	}
}

// point checks the ranges of a Point whose shape is right.
func (v *validation) point(m map[string]any) {
	n := len(v.at)
	for i, limit := range [2]float64{180, 90} {
		f, _ := m["coordinates"].([]any)[i].(json.Number).Float64()
		if math.Abs(f) > limit {
			v.at = append(append(append(v.at[:n], ".coordinates["...), '0'+byte(i)), ']')
			l := strconv.Itoa(int(limit))
			v.fault([2]string{"expected longitude", "expected latitude"}[i] + " from -" + l + " to " + l)
		}
	}
	v.at = v.at[:n]
}

func (v *validation) array(s *huma.Schema, a []any) {
	if s.MinItems != nil && len(a) < *s.MinItems {
		v.fault("expected " + strconv.Itoa(*s.MinItems) + " or more items")
	}
	if s.MaxItems != nil && len(a) > *s.MaxItems {
		v.fault("expected " + strconv.Itoa(*s.MaxItems) + " or fewer items")
		return
	}
	if s.UniqueItems && !unique(a) {
		v.fault("expected no item twice")
	}
	if s.Items == nil {
		return
	}
	n := len(v.at)
	for i, x := range a {
		v.at = append(strconv.AppendInt(append(v.at[:n], '['), int64(i), 10), ']')
		v.value(s.Items, x)
	}
	v.at = v.at[:n]
}

func unique(a []any) bool {
	seen := make(map[string]bool, len(a))
	for _, x := range a {
		b, err := json.Marshal(x)
		if err != nil || seen[string(b)] {
			return false
		}
		seen[string(b)] = true
	}
	return true
}

// huma checks a leaf. Of huma's messages those are kept that are made of the
// schema alone; those about formats may quote the value.
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

// floats turns the json.Numbers in x into float64, which is what huma takes.
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

// readJSON reads one JSON value; numbers stay json.Number, so that one out of
// range is a fault of the field and not of the syntax.
func readJSON(b []byte) (any, bool) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var x any
	if d.Decode(&x) != nil {
		return nil, false
	}
	_, err := d.Token() // only white space may follow
	return x, err == io.EOF
}
