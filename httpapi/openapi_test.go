package httpapi

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"strings"
	"testing"

	"github.com/danielgtaylor/huma/v2"
)

// The OpenAPI document has version 3.1, its references resolve, its operations have ids
// and problems for errors, and nothing is nullable.
func TestOpenAPI(t *testing.T) {
	t.Parallel()
	a := testAPI(t, io.Discard)
	_, _, body := do(t, a, call{method: "GET", path: "/openapi.json"})
	var doc map[string]any
	if err := json.Unmarshal([]byte(body), &doc); err != nil {
		t.Fatal(err)
	}
	if doc["openapi"] != "3.1.0" {
		t.Errorf("openapi: %v", doc["openapi"])
	}
	schemas := doc["components"].(map[string]any)["schemas"].(map[string]any)
	for _, m := range regexp.MustCompile(`"\$ref":"([^"]*)"`).FindAllStringSubmatch(body, -1) {
		if name, ok := strings.CutPrefix(m[1], "#/components/schemas/"); !ok || schemas[name] == nil {
			t.Errorf("%s leads nowhere", m[1])
		}
	}
	if strings.Contains(body, `"null"`) || strings.Contains(body, "$schema") {
		t.Error("null or $schema in the document")
	}
	for path, item := range doc["paths"].(map[string]any) {
		for method, o := range item.(map[string]any) {
			op := o.(map[string]any)
			if op["operationId"] == "" || op["responses"].(map[string]any)["500"] == nil {
				t.Errorf("%s %s: %v", method, path, op)
			}
			for status, r := range op["responses"].(map[string]any) {
				content, _ := r.(map[string]any)["content"].(map[string]any)
				if status[0] >= '4' && content["application/problem+json"] == nil {
					t.Errorf("%s %s: %s is no problem", method, path, status)
				}
			}
			for _, m := range regexp.MustCompile(`{(\w+)}`).FindAllStringSubmatch(path, -1) {
				if !strings.Contains(fmt.Sprint(op["parameters"]), "name:"+m[1]) && path != "/v1/things/{id}/prepare" {
					t.Errorf("%s %s: %s is not described", method, path, m[1])
				}
			}
		}
	}
	place := doc["paths"].(map[string]any)["/v1/orders"].(map[string]any)["post"].(map[string]any)
	b, _ := json.Marshal(place)
	for _, want := range []string{`"bearer"`, `"Idempotency-Key"`, `"If-Match"`, `"201"`, `"401"`, `"403"`, `"409"`, `"413"`, `"415"`, `"422"`, `"ETag"`, `"Consistency-Token"`, `"Retry-After"`} {
		if !strings.Contains(string(b), want) {
			t.Errorf("the order's operation lacks %s: %s", want, b)
		}
	}
	if !strings.Contains(body, `"format":"geojson-point"`) || !strings.Contains(body, `"prefixItems"`) {
		t.Error("a Point is not described")
	}
}

// Two packages may have types with the same name.
func TestSchemaNames(t *testing.T) {
	t.Parallel()
	type order struct {
		ID string `json:"id"`
	}
	type Order struct {
		A int `json:"a"`
	}
	a := New(Options{})
	Register(a, huma.Operation{Method: "GET", Path: "/a"}, nil, func(context.Context, *struct{}) (*struct{ Body order }, error) { return nil, nil })
	Register(a, huma.Operation{Method: "GET", Path: "/b"}, nil, func(context.Context, *struct{}) (*struct{ Body Order }, error) { return nil, nil })
	if m := a.OpenAPI.Components.Schemas.Map(); m["Order"] == nil || m["HttpapiOrder"] == nil {
		t.Errorf("%v", m)
	}
}
