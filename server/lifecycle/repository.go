package lifecycle

import (
	"io"

	"hayloft/cloud"
	"hayloft/cloud/fault"
	"hayloft/cloud/template"
	"hayloft/disk"
	"hayloft/disk/repository/drivers"
	"hayloft/wire"
)

// optionsOf are the attributes of a datastore that its driver gets to see.
func optionsOf(ds *cloud.Datastore) map[string]string {
	driver, err := cloud.LookupDatastoreDriver(ds.Driver)
	if err != nil {
		return nil // of a newer version of this program
	}
	var options map[string]string
	for _, name := range driver.Options {
		if value, ok := ds.Template.Get(name); ok && value != "" {
			if options == nil {
				options = map[string]string{}
			}
			options[name] = value
		}
	}
	return options
}

func repositoryOf(ds *cloud.Datastore) *wire.Repository {
	return &wire.Repository{Id: int64(ds.ID), Driver: ds.Driver, Path: ds.BasePath, Options: optionsOf(ds)}
}

// RepositoryOf describes a datastore to those who open it.
func RepositoryOf(ds cloud.Datastore) disk.Repository {
	return disk.Repository{ID: ds.ID, Driver: ds.Driver, Path: ds.BasePath, Options: optionsOf(&ds)}
}

// CheckRepository refuses a datastore whose driver cannot use its BASE_PATH or options. Nothing is contacted.
func CheckRepository(ds cloud.Datastore) error {
	repo, err := drivers.Open(RepositoryOf(ds))
	if closer, ok := repo.(io.Closer); ok && err == nil {
		err = closer.Close()
	}
	return err
}

// FillOf reads a datastore's CACHE_FILL, whether the rest of an image is fetched in the background (YES, the default),
// and CACHE_FILL_RATE in MB a second, which becomes bytes; 0 is no bound.
func FillOf(t template.Template) (fill bool, rate int64, err error) {
	fill, ok, err := t.Bool("CACHE_FILL")
	if err != nil {
		return false, 0, err
	}
	megabytes, _, err := t.Float("CACHE_FILL_RATE")
	if err != nil {
		return false, 0, err
	}
	if megabytes < 0 || megabytes > 1<<20 {
		return false, 0, fault.Errorf(fault.Invalid, "CACHE_FILL_RATE is %v; want 0 (no bound) to %d MB/s", megabytes, 1<<20)
	}
	return fill || !ok, int64(megabytes * mebi), nil
}
