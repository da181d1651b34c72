package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"tomato/cmd/tomato/settings"
	"tomato/migrations"
	"tomato/projections"
)

type migrateCmd struct {
	Up     migrateUpCmd     `cmd:"" default:"withargs" help:"Make what serve would make: tables, the extension PostGIS, the first generation of each read model."`
	Status migrateStatusCmd `cmd:"" help:"Show the versions and what is pending. Exit code 3: something is pending."`
	Repair migrateRepairCmd `cmd:"" help:"Look for versions that do not say what is there, and for forgotten schemas. Changes nothing without --yes."`
}

// withDatabase runs a tool on the database of the installation. The tool needs no broker.
func withDatabase(ctx context.Context, f settings.Tool, do func(*projections.ReadModels) error) error {
	if f.DatabaseURL == "" {
		if err := f.ResolveDatabase(); err != nil {
			return err
		}
	}
	if err := f.Database.Check(); err != nil {
		return err
	}
	db, err := f.Database.Pool(ctx, "tomato-migrate", 2)
	if err != nil {
		return err
	}
	defer db.Close()
	return do(&projections.ReadModels{DB: db, DatabaseURL: f.DatabaseURL, Log: f.Logger()})
}

// migrationStatus is what migrate status shows.
type migrationStatus struct {
	UpToDate bool           `json:"upToDate"` // nothing is pending, and nothing is to be repaired
	PostGIS  bool           `json:"postgis"`
	Schemas  []schemaStatus `json:"schemas"`
}

// schemaStatus is one schema of it. A schema of a generation is made once and never
// migrated: if Version is below Newest, the note says which rebuild replaces it.
type schemaStatus struct {
	migrations.Schema
	State projections.State `json:"state,omitempty"` // of a generation
	Note  string            `json:"note,omitempty"`
	model string
}

func readMigrationStatus(ctx context.Context, models *projections.ReadModels) (status migrationStatus, err error) {
	if status.PostGIS, err = migrations.HasPostGIS(ctx, models.DB); err != nil {
		return status, err
	}
	core, err := migrations.CoreSchema(ctx, models.DB)
	if err != nil {
		return status, err
	}
	status.UpToDate = status.PostGIS && len(core.Pending) == 0 && !core.Foreign
	row := schemaStatus{Schema: core}
	switch {
	case core.Foreign:
		row.Note = "another build has made it: use a build that has this version"
	case core.Dirty:
		row.Note = "its version is marked as incomplete: run `tomato migrate repair`"
	case len(core.Pending) > 0:
		row.Note = "run `tomato migrate up`"
	}
	status.Schemas = append(status.Schemas, row)
	if len(core.Pending) > 0 || core.Foreign {
		return status, nil // the table of generations may be another one
	}
	generations, err := models.Generations(ctx)
	if err != nil {
		return status, err
	}
	for _, model := range projections.Models() {
		if !slices.ContainsFunc(generations, func(s projections.Status) bool { return s.Model == model && s.State == projections.StateServing }) {
			generations = append(generations, projections.Status{Generation: projections.Generation{Model: model, Number: 1}, State: "missing"})
		}
	}
	for _, g := range generations {
		if !slices.Contains(projections.Models(), g.Model) {
			continue // of another build
		}
		schema, err := migrations.ReadModelSchema(ctx, models.DB, g.Schema(), g.Model)
		if err != nil {
			return status, err
		}
		row := schemaStatus{Schema: schema, State: g.State, model: g.Model}
		switch {
		case g.State == "missing":
			row.Note, status.UpToDate = "run `tomato migrate up`", false
		case schema.Dirty || schema.Version == 0:
			row.Note = "its tables are incomplete: run `tomato rebuild " + g.Model + "`"
			status.UpToDate = status.UpToDate && g.State != projections.StateServing
		case g.Due:
			row.Note = "another version of this program has made it: run `tomato rebuild " + g.Model + "`"
		}
		if g.State != "missing" {
			row.Pending = []string{} // a schema of a generation is not migrated
		}
		status.Schemas = append(status.Schemas, row)
	}
	return status, nil
}

func (s migrationStatus) write(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "SCHEMA\tSTATE\tVERSION\tNEWEST\tDIRTY\tPENDING\tNOTE")
	for _, r := range s.Schemas {
		state, pending := string(r.State), strings.Join(r.Pending, " ")
		if state == "" {
			state = "-"
		}
		if pending == "" {
			pending = "-"
		}
		fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%t\t%s\t%s\n", r.Name, state, r.Version, r.Newest, r.Dirty, pending, r.Note)
	}
	if !s.PostGIS {
		fmt.Fprintln(w, "the extension PostGIS is missing: run `tomato migrate up`")
	}
	return w.Flush()
}

type migrateStatusCmd struct {
	settings.Tool
	JSON bool `name:"json" help:"As JSON."`
}

func (c migrateStatusCmd) Run(ctx context.Context) error {
	return withDatabase(ctx, c.Tool, func(models *projections.ReadModels) error {
		status, err := readMigrationStatus(ctx, models)
		if err != nil {
			return err
		}
		if c.JSON {
			err = json.NewEncoder(os.Stdout).Encode(status)
		} else {
			err = status.write(os.Stdout)
		}
		if err == nil && !status.UpToDate {
			err = errPending
		}
		return err
	})
}

// errPending ends the process with exitPending.
var errPending = errors.New("the database is not up to date: run `tomato migrate up`, or what the notes say")

type migrateUpCmd struct {
	settings.Tool
	LockWait time.Duration `default:"1m" help:"How long to wait for a lock of another session."`
}

func (c migrateUpCmd) Run(ctx context.Context) error {
	if c.LockWait <= 0 {
		return settings.Usage("--lock-wait must be more than 0")
	}
	return withDatabase(ctx, c.Tool, func(models *projections.ReadModels) error {
		before, err := migrations.CoreSchema(ctx, models.DB)
		if err != nil {
			return err
		}
		if err := migrations.CoreWithin(ctx, c.DatabaseURL, c.LockWait); err != nil {
			return err
		}
		for _, file := range before.Pending {
			fmt.Printf("%s: %s is applied\n", before.Name, file)
		}
		made, err := models.MakeMissing(ctx)
		for _, g := range made {
			fmt.Printf("%s: its tables are made\n", g.Schema())
		}
		if err != nil {
			return err
		}
		fmt.Println("the database is up to date")
		return nil
	})
}

type migrateRepairCmd struct {
	settings.Tool
	Yes      bool          `help:"Do what is shown."`
	Applied  int           `default:"-1" help:"All that the files of schema tomato up to this version make is there, and nothing of later ones: write that down."`
	LockWait time.Duration `default:"1m" help:"How long to wait for a lock of another session."`
}

// repairStep is one thing that repair has found and would do.
type repairStep struct {
	found, does string
	do          func() error
}

func (c migrateRepairCmd) Run(ctx context.Context) error {
	if c.LockWait <= 0 {
		return settings.Usage("--lock-wait must be more than 0")
	}
	return withDatabase(ctx, c.Tool, func(models *projections.ReadModels) error {
		steps, err := c.steps(ctx, models)
		if err != nil {
			return err
		}
		if len(steps) == 0 {
			fmt.Println("nothing to repair")
			return nil
		}
		stuck := false
		for _, s := range steps {
			fmt.Printf("found: %s\n  to do: %s\n", s.found, s.does)
			stuck = stuck || s.do == nil
			if c.Yes && s.do != nil {
				if err := s.do(); err != nil {
					return err
				}
				fmt.Println("  done")
			}
		}
		switch {
		case !c.Yes:
			return errors.New("nothing has been changed: repeat the command with --yes to do it")
		case stuck:
			return errors.New("what is not done is for you to decide")
		}
		return nil
	})
}

func (c migrateRepairCmd) steps(ctx context.Context, models *projections.ReadModels) (steps []repairStep, err error) {
	core, err := migrations.CoreSchema(ctx, models.DB)
	if err != nil {
		return nil, err
	}
	assume := func(version int) func() error {
		return func() error { return migrations.Assume(ctx, c.DatabaseURL, version, c.LockWait) }
	}
	if c.Applied >= 0 {
		return []repairStep{{fmt.Sprintf("the schema tomato is at version %d (dirty: %t)", core.Version, core.Dirty),
			fmt.Sprintf("write down that it is at version %d, as --applied says, and apply nothing", c.Applied), assume(c.Applied)}}, nil
	}
	if core.Foreign {
		return nil, fmt.Errorf("the schema tomato is at version %d, which this build does not have: use a build that has it", core.Version)
	}
	if core.Dirty || core.Version == 0 && len(core.Pending) > 0 {
		step, err := c.coreStep(ctx, core)
		if err != nil {
			return nil, err
		}
		if step != nil {
			return []repairStep{*step}, nil
		}
	}
	if len(core.Pending) > 0 {
		return nil, nil // up does it
	}
	status, err := readMigrationStatus(ctx, models)
	if err != nil {
		return nil, err
	}
	for _, s := range status.Schemas[1:] {
		if s.State != "missing" && (s.Dirty || s.Version == 0) {
			steps = append(steps, repairStep{found: fmt.Sprintf("the tables of %s (%s) are incomplete", s.Name, s.State), does: "run `tomato rebuild " + s.model + "`, which makes them again"})
		}
	}
	orphans, err := models.Orphans(ctx)
	for _, g := range orphans {
		if g.Number == 1 && slices.ContainsFunc(status.Schemas, func(s schemaStatus) bool { return s.Name == g.Schema() && s.State == "missing" }) {
			continue // up makes it again
		}
		steps = append(steps, repairStep{"the schema " + g.Schema() + " belongs to no generation, and nothing uses it", "drop it with all that is in it",
			func() error { return models.DropOrphan(ctx, g) }})
	}
	return steps, err
}

// coreStep returns what is to be done about a version that is marked as incomplete, or
// about tables without a version. It tries the file in a transaction that it rolls back.
// It returns nil if nothing is to be repaired.
func (c migrateRepairCmd) coreStep(ctx context.Context, core migrations.Schema) (*repairStep, error) {
	file, refused, err := migrations.TryNext(ctx, c.DatabaseURL, c.LockWait)
	if err != nil {
		return nil, err
	}
	found := fmt.Sprintf("the schema tomato is at version %d, which is marked as incomplete", core.Version)
	if core.Version == 0 {
		found = "the schema tomato has no version"
	}
	if refused == nil {
		if !core.Dirty {
			return nil, nil // an empty database
		}
		before := core.Before
		return &repairStep{found + ", and nothing of the file " + file + " is there", fmt.Sprintf("write down version %d; then `tomato migrate up` applies the file", before),
			func() error { return migrations.Assume(ctx, c.DatabaseURL, before, c.LockWait) }}, nil
	}
	return &repairStep{found: fmt.Sprintf("%s, and the file %s cannot be applied, so what it makes is there at least in part: %v", found, file, refused),
		does: fmt.Sprintf("compare the tables with migrations/core/%s.up.sql. If all of it is there, run `tomato migrate repair --applied %s --yes`. Otherwise remove what the error names, and run this command again",
			file, strings.TrimLeft(strings.SplitN(file, "_", 2)[0], "0"))}, nil
}
