package lifecycle

import (
	"hayloft/cloud"
	"hayloft/cloud/fault"
	"hayloft/cloud/template"
	"hayloft/disk"
	"hayloft/disk/repository"
	"hayloft/disk/repository/drivers"
	"hayloft/wire"
)

// driverOptions are the attributes of a datastore that its driver gets to see, here and on hosts. What is in a
// template can be read by everybody who may see the datastore, so secrets are in files that it names.
var driverOptions = map[string][]string{
	"http": {"CA_FILE", "USER", "PASSWORD_FILE", "TOKEN_FILE", "PLAIN_CREDENTIALS"},
}

func optionsOf(ds *cloud.Datastore) map[string]string {
	var options map[string]string
	for _, name := range driverOptions[ds.Driver] {
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

// OpenRepository opens a datastore from this server. Nothing is contacted yet.
func OpenRepository(ds cloud.Datastore) (repository.Repository, error) {
	return drivers.Open(disk.Repository{ID: ds.ID, Driver: ds.Driver, Path: ds.BasePath, Options: optionsOf(&ds)})
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
