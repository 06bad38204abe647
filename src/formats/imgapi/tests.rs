//! Tests with manifests of real servers, and for every rule.

use super::*;

const SEED: &str = include_str!("../../../tests/data/imgapi/seed-v1-smartos-1.3.12.dsmanifest");
const FAUXNODEJS_V1: &str = include_str!("../../../tests/data/imgapi/fauxnodejs-1.4.0.dsmanifest");
const FAUXUBUNTU_V1: &str = include_str!("../../../tests/data/imgapi/fauxubuntu.dsmanifest");
const FAUXNODEJS: &str = include_str!("../../../tests/data/imgapi/fauxnodejs-1.4.0.imgmanifest");
const INC_LEVEL_1: &str = include_str!("../../../tests/data/imgapi/xdc-inc-level-1.manifest");
const INC_LEVEL_3: &str = include_str!("../../../tests/data/imgapi/xdc-inc-level-3.manifest");
const CENTOS: &str = include_str!("../../../tests/data/imgapi/danube-centos-6.manifest");
const RIAK: &str = include_str!("../../../tests/data/imgapi/danube-riak.manifest");
const PUBLIC_DATABASE: &str = include_str!("../../../tests/data/imgapi/public-test-images.json");
const DC_DATABASE: &str = include_str!("../../../tests/data/imgapi/dc-test-images.json");

/// The smallest valid manifest, with the fields of `patch` added. Null removes a field.
fn patched(patch: Value) -> Result<Manifest, String> {
    let uuid = "1f9b7958-289e-4ea3-8f88-5486a40d6823";
    let mut manifest = json!({"v": 2, "uuid": uuid, "name": "foo", "version": "1.2.3", "type": "zone-dataset", "os": "smartos"});
    for (key, value) in patch.as_object().unwrap() {
        match value {
            Value::Null => _ = manifest.as_object_mut().unwrap().shift_remove(key),
            _ => manifest[key] = value.clone(),
        }
    }
    Manifest::parse(manifest.to_string().as_bytes())
}

fn zvol(patch: Value) -> Value {
    let mut manifest = json!({"type": "zvol", "nic_driver": "virtio", "disk_driver": "", "cpu_type": "host", "image_size": 1});
    manifest.as_object_mut().unwrap().extend(patch.as_object().unwrap().clone());
    manifest
}

fn document(manifest: &Manifest) -> Value {
    serde_json::from_str(&manifest.text()).unwrap()
}

#[test]
fn manifests_in_the_wild_are_accepted_and_read_back_the_same() {
    for text in [SEED, FAUXNODEJS_V1, FAUXUBUNTU_V1, FAUXNODEJS, INC_LEVEL_1, INC_LEVEL_3, CENTOS, RIAK] {
        assert!(looks_like(&serde_json::from_str(text).unwrap()));
        let manifest = Manifest::parse(text.as_bytes()).unwrap();
        let again = Manifest::parse(manifest.text().as_bytes()).unwrap();
        assert_eq!(again.text(), manifest.text());
        assert!(manifest.text().starts_with("{\n  \"v\": 2,\n") && manifest.text().ends_with("}\n"));
        Manifest::parse(manifest.export_text().as_bytes()).unwrap();
    }
    for element in serde_json::from_str::<Vec<Value>>(PUBLIC_DATABASE).unwrap() {
        let manifest = Manifest::parse(element.to_string().as_bytes()).unwrap();
        let export: Value = serde_json::from_str(&manifest.export_text()).unwrap();
        assert_eq!((&export["icon"], export.get("channels")), (&true.into(), None));
    }
}

/// A dump of IMGAPI's LDAP. Its rows are not manifests, and one sentence names everything that is
/// wrong.
#[test]
fn a_database_row_is_refused_with_every_broken_field() {
    let rows: Vec<Value> = serde_json::from_str(DC_DATABASE).unwrap();
    let refusals: Vec<_> =
        rows.iter().map(|row| Manifest::parse(row.to_string().as_bytes()).unwrap_err()).collect();
    assert_eq!(refusals[0], "the manifest is refused: objectclass is no field of a manifest");
    assert_eq!(
        refusals[3],
        "the manifest is refused: acl must be a list of uuids in lower case, not \"91ba0e64-2547-11e2-a972-df579e5fddb3\"; \
         objectclass is no field of a manifest"
    );
}

#[test]
fn the_fields_come_out_as_they_went_in() {
    let manifest = Manifest::parse(INC_LEVEL_1.as_bytes()).unwrap();
    assert_eq!(manifest.uuid(), "c58161c0-2547-11e2-a75e-9fdca1940570");
    assert_eq!((manifest.name(), manifest.version()), ("inc-level-1", "1.0.0"));
    assert_eq!((manifest.os(), manifest.kind()), ("smartos", "zone-dataset"));
    assert_eq!(manifest.description(), "Base operator owned public image");
    assert_eq!((manifest.origin(), manifest.published_at()), (None, Some("2018-01-04T11:35:37Z")));
    assert!(manifest.is_public());
    let sha1 = "f6217f583a64e1b39cea7a8700b96cbb2375bb23".into();
    assert_eq!(manifest.files(), [File { sha1, size: 65, compression: "bzip2".into() }]);
    assert_eq!(document(&manifest), serde_json::from_str::<Value>(INC_LEVEL_1).unwrap());

    let child = Manifest::parse(INC_LEVEL_3.as_bytes()).unwrap();
    assert_eq!(child.origin(), Some("900cffef-55e3-4e7d-b7ec-ccf439a159e3"));
    assert!(!child.is_public() && !patched(json!({})).unwrap().is_public());

    let tags =
        patched(json!({"tags": {"a": "b", "n": 5, "t": true, "docker:config": {"Cmd": []}}})).unwrap().tags();
    let expected = [("a", "b"), ("n", "5"), ("t", "true")];
    assert_eq!(tags, expected.map(|(key, value)| (key.into(), value.into())).into());
}

#[test]
fn version_1_is_upgraded_and_loses_nothing() {
    let seed = Manifest::parse(SEED.as_bytes()).unwrap();
    let [new, old] = [document(&seed), serde_json::from_str(SEED).unwrap()];
    assert_eq!(new["owner"], old["creator_uuid"]);
    assert_eq!(seed.published_at(), Some("2011-04-11T08:45:00Z"));
    assert_eq!((&new["state"], &new["disabled"], seed.is_public()), (&"active".into(), &false.into(), true));
    assert_eq!(seed.files()[0].compression, "bzip2");
    for key in [
        "creator_uuid",
        "creator_name",
        "vendor_uuid",
        "cloud_name",
        "platform_type",
        "created_at",
        "updated_at",
    ] {
        assert_eq!((new.get(key), &new["v1"][key]), (None, &old[key]), "{key}");
    }
    for key in ["path", "url"] {
        assert_eq!((new["files"][0].get(key), &new["v1"]["files"][0][key]), (None, &old["files"][0][key]));
    }
    assert!(!seed.export_text().contains("v1"));
    assert_eq!(document(&Manifest::parse(FAUXUBUNTU_V1.as_bytes()).unwrap())["image_size"], 16384);
}

#[test]
fn version_1_has_odd_corners() {
    let owner = "352971aa-31ba-496c-9ade-a379feaecd52";
    let v1 = |patch: Value| {
        let mut manifest = json!({"v": null, "creator_uuid": owner});
        manifest.as_object_mut().unwrap().extend(patch.as_object().unwrap().clone());
        patched(manifest)
    };
    for v in [json!(null), json!(1), json!("1")] {
        assert_eq!(document(&v1(json!({"v": v})).unwrap())["v"], 2);
    }
    let restricted = v1(json!({"restricted_to_uuid": owner})).unwrap();
    assert_eq!((restricted.is_public(), &document(&restricted)["acl"]), (false, &json!([owner])));
    assert!(!v1(json!({"public": false})).unwrap().is_public());
    assert_eq!(document(&v1(json!({"disabled": true})).unwrap())["state"], "disabled");
    let created = v1(json!({"created_at": "2012-01-02T03:04Z"})).unwrap();
    assert_eq!(created.published_at(), Some("2012-01-02T03:04:00Z"));
    for (path, compression) in
        [("a.zfs.gz", "gzip"), ("a.zfs.bz2", "bzip2"), ("a.zfs.xz", "xz"), ("a.zfs", "none"), ("", "xz")]
    {
        let file = json!({"path": path, "url": "http://a/b.xz", "sha1": "A".repeat(40), "size": 1});
        let file = v1(json!({"files": [file]})).unwrap().files()[0].clone();
        assert_eq!(
            (file.compression.as_str(), file.sha1.as_str()),
            (compression, "a".repeat(40).as_str()),
            "{path}"
        );
    }
    for (bad, why) in [
        (json!({"owner": owner}), "owner stands beside"),
        (json!({"restricted_to_uuid": owner, "public": true}), "public stands beside"),
        (json!({"v": 1, "creator_uuid": ""}), "owner must be a uuid in lower case, not \"\""),
        (json!({"v": 2}), "creator_uuid is no field"),
        (json!({"v1": {}}), "v1 is no field"),
        (json!({"files": [7]}), "files[0] must be an object"),
    ] {
        let refusal = v1(bad.clone()).unwrap_err();
        assert!(refusal.contains(why), "{bad}: {refusal}");
    }
    assert_eq!(patched(json!({"v": 1})).unwrap_err(), "the manifest is refused: creator_uuid is missing");
}

#[test]
fn what_the_rules_allow_is_accepted() {
    let uuid = "930896af-bf8c-48d4-885c-6573a94b1853";
    let file =
        json!({"sha1": "a".repeat(40), "size": 1, "compression": "xz", "stor": "local", "digest": "x"});
    for good in [
        json!({"v": "2", "uuid": uuid, "owner": uuid, "origin": uuid, "urn": "a:b", "v1": {}}),
        json!({"name": ".."}),
        json!({"name": "/a b/-_.", "version": "../1.2+3-_"}),
        json!({"name": "a".repeat(1024), "version": "1".repeat(512), "description": "ü".repeat(10240)}),
        json!({"homepage": "HTTP://a", "eula": "https://a"}),
        json!({"disabled": "false", "activated": true, "public": "true", "generate_passwords": false, "icon": "true"}),
        json!({"published_at": "2012-13-25T12:00:00Z"}),
        json!({"published_at": "2012-12-25T12:00:00.123Z"}),
        json!({"published_at": ""}),
        json!({"state": "creating", "type": "null", "os": "null"}),
        json!({"type": "lx-dataset", "os": "linux"}),
        json!({"type": "docker", "os": "other", "nic_driver": "", "image_size": 0}),
        json!({"acl": [uuid], "users": [{"name": "root"}], "billing_tags": ["a".repeat(128)], "channels": ["dev"]}),
        json!({"inherited_directories": ["/opt"], "traits": {"a": "b", "c": true, "d": []}, "tags": {"a": {"b": null}}}),
        json!({"error": {"message": "no peers"}, "icon": {"sha1": "x"}}),
        json!({"files": []}),
        json!({"files": [file]}),
        json!({"type": "lxd", "files": [file, file]}),
        zvol(json!({"image_size": "16384"})),
        zvol(json!({"image_size": -1})),
        json!({"requirements": {}}),
        json!({"requirements": {"networks": [{"name": "net0", "description": "public"}], "brand": "lx", "ssh_key": true}}),
        json!({"requirements": {"min_ram": 512, "max_ram": 512, "min_platform": {"7.0": "20130308T102805Z"}}}),
        json!({"requirements": {"bootrom": "uefi", "brand": "bhyve", "max_platform": null, "min_ram": 0, "ssh_key": ""}}),
    ] {
        assert_eq!(patched(good.clone()).err(), None, "{good}");
    }
}

#[test]
fn what_the_rules_forbid_is_refused_by_name() {
    for (bad, why) in [
        (json!({"v": null}), "v is missing"),
        (json!({"v": 3}), "v must be 1 or 2, not 3"),
        (json!({"v": "two"}), "v must be 1 or 2"),
        (
            json!({"uuid": "1F9B7958-289e-4ea3-8f88-5486a40d6823"}),
            "uuid must be a uuid in lower case, not \"1F9B",
        ),
        (json!({"uuid": null}), "uuid is missing"),
        (json!({"owner": "me"}), "owner must be"),
        (json!({"origin": ""}), "origin must be"),
        (json!({"urn": 1}), "urn must be"),
        (json!({"name": ""}), "name must be"),
        (json!({"name": "a+b"}), "name must be"),
        (json!({"name": "a\n"}), "name must be"),
        (json!({"name": 7}), "name must be"),
        (json!({"name": "a".repeat(1025)}), "name must be"),
        (json!({"version": "1 2"}), "version must be"),
        (json!({"version": "1:2~3"}), "version must be"),
        (json!({"version": "1".repeat(513)}), "version must be"),
        (json!({"description": "\u{1F600}".repeat(5121)}), "description must be"),
        (json!({"homepage": "ftp://a"}), "homepage must be"),
        (json!({"eula": format!("http://{}", "a".repeat(1018))}), "eula must be"),
        (json!({"public": "proto"}), "public must be true or false, not \"proto\""),
        (json!({"icon": 1}), "icon must be"),
        (json!({"published_at": "2011-04-11T08:45Z"}), "published_at must be"),
        (json!({"published_at": "2012-12-25T12:00:00.12Z"}), "published_at must be"),
        (json!({"state": "installed"}), "state must be one of active"),
        (json!({"type": "toString"}), "type must be one of zone-dataset"),
        (json!({"type": "null"}), "type must be"),
        (json!({"os": "SmartOS"}), "os must be one of smartos"),
        (
            json!({"type": "zvol"}),
            "nic_driver is missing; disk_driver is missing; cpu_type is missing; image_size is missing",
        ),
        (zvol(json!({"image_size": 1.5})), "image_size must be a whole number, not 1.5"),
        (zvol(json!({"image_size": "inf"})), "image_size must be a whole number"),
        (zvol(json!({"cpu_type": 1})), "cpu_type must be a string"),
        (json!({"nic_driver": "virtio"}), "nic_driver must be left out unless type is zvol"),
        (json!({"image_size": 1}), "image_size must be left out"),
        (json!({"acl": ["x"]}), "acl must be"),
        (json!({"users": [{"name": "a", "id": 1}]}), "users must be"),
        (json!({"billing_tags": ["a".repeat(129)]}), "billing_tags must be"),
        (json!({"type": "other", "inherited_directories": []}), "inherited_directories must be left out"),
        (json!({"inherited_directories": [1]}), "inherited_directories must be a list"),
        (json!({"channels": "dev"}), "channels must be"),
        (json!({"traits": {"a": 1}}), "traits must be"),
        (json!({"tags": []}), "tags must be"),
        (json!({"tags": {"a": "b".repeat(100 << 10)}}), "tags must be a map of at most"),
        (json!({"error": "x"}), "error must be"),
        (json!({"foo\u{7}": 1}), "foo? is no field of a manifest"),
    ] {
        assert_refused(&bad, why);
    }
}

#[test]
fn what_the_rules_forbid_of_files_and_requirements_is_refused_by_name() {
    let file = |patch: Value| {
        let mut file = json!({"sha1": "a".repeat(40), "size": 1, "compression": "gzip"});
        file.as_object_mut().unwrap().extend(patch.as_object().unwrap().clone());
        file
    };
    let platform = |time: &str| json!({"requirements": {"min_platform": {"7.0": time}}});
    for (bad, why) in [
        (json!({"files": {}}), "files must be a list"),
        (json!({"files": [file(json!({})), file(json!({}))]}), "files must be at most 1, not 2"),
        (
            json!({"files": [{}]}),
            "files[0].sha1 is missing; files[0].size is missing; files[0].compression is missing",
        ),
        (
            json!({"files": [file(json!({"size": 0}))]}),
            "files[0].size must be a number of bytes above 0, not 0",
        ),
        (json!({"files": [file(json!({"sha1": "a"}))]}), "files[0].sha1 must be"),
        (json!({"files": [file(json!({"compression": "zstd"}))]}), "files[0].compression must be one of"),
        (json!({"requirements": []}), "requirements must be"),
        (json!({"requirements": {"foo": null}}), "requirements.foo is no known requirement"),
        (json!({"requirements": {"networks": [{"name": "net0"}]}}), "requirements.networks must be"),
        (json!({"requirements": {"brand": 1}}), "requirements.brand must be"),
        (json!({"requirements": {"ssh_key": "yes"}}), "requirements.ssh_key must be"),
        (json!({"requirements": {"min_ram": "512"}}), "requirements.min_ram must be"),
        (
            json!({"requirements": {"min_ram": 2, "max_ram": 1}}),
            "requirements.max_ram must be a whole number, not below min_ram",
        ),
        (json!({"requirements": {"max_platform": {}}}), "requirements.max_platform must be"),
        (platform("undefined"), "requirements.min_platform must be"),
        (platform("20111231T000000Z"), "requirements.min_platform must be"),
        (platform("20131301T000000Z"), "requirements.min_platform must be"),
        (platform("20130100T000000Z"), "requirements.min_platform must be"),
        (platform("20130101T240000Z"), "requirements.min_platform must be"),
        (
            json!({"requirements": {"bootrom": "uefi"}}),
            "requirements.bootrom must be bios or uefi, with brand bhyve",
        ),
        (json!({"requirements": {"bootrom": "/x", "brand": "bhyve"}}), "requirements.bootrom must be"),
    ] {
        assert_refused(&bad, why);
    }
}

/// A manifest with such fields is refused, and the sentence says why.
fn assert_refused(bad: &Value, why: &str) {
    let refusal = patched(bad.clone()).expect_err(why);
    assert!(refusal.contains(why) && refusal.starts_with("the manifest is refused: "), "{bad}: {refusal}");
}

#[test]
fn hostile_texts_are_refused_in_a_short_sentence() {
    let nested = format!("{}{}", "[".repeat(100), "]".repeat(100));
    let many = |element: &str, n| vec![element; n].join(",");
    for (text, why) in [
        (String::new(), "it is not valid JSON: "),
        ("{\"v\": 2".into(), "it is not valid JSON: "),
        ("[".repeat(100_000), "it is not valid JSON: recursion limit exceeded"),
        ("[]".into(), "it is not a JSON object"),
        (
            "{}".into(),
            "v is missing; uuid is missing; name is missing; version is missing; type is missing; os is missing",
        ),
        (" ".repeat(MANIFEST_MAX + 1), "it has 1048577 bytes, at most 1048576 are read"),
        (
            format!("{{{}}}", (0..9999).map(|i| format!("\"x{i}\":0")).collect::<Vec<_>>().join(",")),
            "; and 9965 more",
        ),
        (format!("{{\"error\":{{\"a\":[{}]}}}}", many(&nested, 5000)), "longer than 1048576 bytes"),
        (format!("{{\"name\":[{}]}}", many("1", 99999)), "name must be"),
    ] {
        let refusal = Manifest::parse(text.as_bytes()).unwrap_err();
        assert!(refusal.contains(why) && refusal.len() < 4096, "{refusal}");
    }
    assert!(Manifest::parse(b"{\"v\": \"\xff\"}").unwrap_err().contains("it is not valid JSON: "));
}

#[test]
fn a_manifest_is_told_from_our_own_metadata() {
    for (value, expected) in [
        (json!({"uuid": "x", "v": 2}), true),
        (json!({"uuid": "x", "files": []}), true),
        (json!({"uuid": "x", "creator_uuid": "y"}), true),
        (json!({"uuid": "x"}), false),
        (json!({"id": "x", "versions": [], "v": 2}), false),
        (json!([{"uuid": "x", "v": 2}]), false),
        (json!(null), false),
    ] {
        assert_eq!(looks_like(&value), expected, "{value}");
    }
    for name in ["a.imgmanifest", "a.dsmanifest", "a.b.manifest", "A.IMGMANIFEST", "manifest"] {
        assert!(is_manifest_name(name), "{name}");
    }
    for name in [
        "",
        ".manifest",
        ".imgmanifest",
        "manifests",
        "amanifest",
        "manifest.json",
        "metadata.json",
        "a.zfs.gz",
    ] {
        assert!(!is_manifest_name(name), "{name}");
    }
}
