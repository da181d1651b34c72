package server_test

import (
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// This file checks answers against /openapi.json. It implements the part of JSON Schema
// 2020-12 that /openapi.json uses. A keyword that it does not know is a fault.

// operation returns the operation of /openapi.json with this path, or nil.
func (c *contract) operation(method, path string) map[string]any {
	path, _, _ = strings.Cut(path, "?")
	asked := strings.Split(path, "/")
	paths, _ := c.spec["paths"].(map[string]any)
	var best map[string]any
	bestScore := -1
	for pattern, item := range paths {
		parts := strings.Split(pattern, "/")
		if len(parts) != len(asked) {
			continue
		}
		score := 0
		for i, p := range parts {
			switch {
			case p == asked[i]:
				score++
			case strings.HasPrefix(p, "{"):
			default:
				score = -1000
			}
		}
		if op, ok := item.(map[string]any)[strings.ToLower(method)].(map[string]any); ok && score > bestScore {
			best, bestScore = op, score
		}
	}
	if bestScore < 0 {
		return nil
	}
	return best
}

// specFaults returns how an answer differs from /openapi.json.
func (c *contract) specFaults(method, path string, x *reply) []string {
	if !strings.HasPrefix(path, "/v1/") && !strings.HasPrefix(path, "/api/") || x.Status == 405 || x.Str("code") == "not_found" {
		return nil
	}
	op := c.operation(method, path)
	if op == nil {
		return []string{"the operation is not documented"}
	}
	responses, _ := op["responses"].(map[string]any)
	r, ok := responses[strconv.Itoa(x.Status)].(map[string]any)
	if !ok {
		return []string{"the status is not documented"}
	}
	content, _ := r["content"].(map[string]any)
	if len(x.Body) == 0 {
		if len(content) > 0 {
			return []string{"the body is missing"}
		}
		return nil
	}
	mediaType, _, _ := strings.Cut(x.Header.Get("Content-Type"), ";")
	m, ok := content[mediaType].(map[string]any)
	if !ok {
		return []string{"the media type " + mediaType + " is not documented"}
	}
	schema, _ := m["schema"].(map[string]any)
	if x.body == nil {
		return []string{"the body is no object"}
	}
	return c.schemaFaults(schema, x.body, "body")
}

// schemaFaults returns how a value differs from a schema.
func (c *contract) schemaFaults(s map[string]any, v any, at string) (faults []string) {
	fault := func(format string, args ...any) {
		faults = append(faults, at+": "+fmt.Sprintf(format, args...))
	}
	if ref, ok := s["$ref"].(string); ok {
		components, _ := c.spec["components"].(map[string]any)
		schemas, _ := components["schemas"].(map[string]any)
		target, ok := schemas[strings.TrimPrefix(ref, "#/components/schemas/")].(map[string]any)
		if !ok {
			fault("dangling %s", ref)
			return faults
		}
		return c.schemaFaults(target, v, at)
	}
	limit := func(name string) (float64, bool) { n, ok := s[name].(float64); return n, ok }
	if enum, ok := s["enum"].([]any); ok && !slices.Contains(enum, v) {
		fault("%v is none of %v", v, enum)
	}
	for keyword := range s {
		if !slices.Contains([]string{"type", "format", "description", "examples", "default", "contentEncoding", "$schema", "properties", "required", "additionalProperties", "items", "prefixItems",
			"minItems", "maxItems", "enum", "pattern", "patternDescription", "minLength", "maxLength", "minimum", "maximum", "readOnly", "title"}, keyword) {
			fault("keyword %s is not known here", keyword)
		}
	}
	switch s["type"] {
	case nil: // no type: any value is allowed
	case "object":
		m, ok := v.(map[string]any)
		if !ok {
			fault("expected object")
			return faults
		}
		properties, _ := s["properties"].(map[string]any)
		required, _ := s["required"].([]any)
		for _, name := range required {
			if _, ok := m[name.(string)]; !ok {
				fault("lacks %s", name)
			}
		}
		for name, e := range m {
			if p, ok := properties[name].(map[string]any); ok {
				faults = append(faults, c.schemaFaults(p, e, at+"."+name)...)
			} else if s["additionalProperties"] == false {
				fault("has %s", name)
			} else if more, ok := s["additionalProperties"].(map[string]any); ok {
				faults = append(faults, c.schemaFaults(more, e, at+"."+name)...)
			}
		}
	case "array":
		a, ok := v.([]any)
		if !ok {
			fault("expected array")
			return faults
		}
		if n, ok := limit("minItems"); ok && len(a) < int(n) {
			fault("too short")
		}
		if n, ok := limit("maxItems"); ok && len(a) > int(n) {
			fault("too long")
		}
		prefix, _ := s["prefixItems"].([]any)
		items, _ := s["items"].(map[string]any)
		for i, e := range a {
			at := fmt.Sprintf("%s[%d]", at, i)
			if i < len(prefix) {
				faults = append(faults, c.schemaFaults(prefix[i].(map[string]any), e, at)...)
			} else {
				faults = append(faults, c.schemaFaults(items, e, at)...)
			}
		}
	case "string":
		str, ok := v.(string)
		if !ok {
			fault("expected string")
			return faults
		}
		if n, ok := limit("minLength"); ok && utf8.RuneCountInString(str) < int(n) {
			fault("too short")
		}
		if n, ok := limit("maxLength"); ok && utf8.RuneCountInString(str) > int(n) {
			fault("too long")
		}
		if p, ok := s["pattern"].(string); ok && !regexp.MustCompile(strings.ReplaceAll(p, `\u0000`, `\x00`)).MatchString(str) {
			fault("does not match %s", p)
		}
	case "integer", "number":
		n, ok := v.(float64)
		if !ok || s["type"] == "integer" && n != math.Trunc(n) {
			fault("expected %s", s["type"])
			return faults
		}
		if l, ok := limit("minimum"); ok && n < l {
			fault("below %v", l)
		}
		if l, ok := limit("maximum"); ok && n > l {
			fault("above %v", l)
		}
	case "boolean":
		if _, ok := v.(bool); !ok {
			fault("expected boolean")
		}
	default:
		fault("type %v is not known here", s["type"])
	}
	return faults
}
